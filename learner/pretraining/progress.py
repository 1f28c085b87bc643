"""The file from which an interrupted student stage resumes when the same command is run again, and the check that the
recipe is the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rl.config.pretrain import NAOSDPretrain
from rl.errors import InputError

FILE = "student_progress.pt"
FREE = {"out": True, "device": True, "threads": True, "held_out": True}
"""Fields that may differ when a stage resumes; so may `student.checkpoint_every`."""


def read(config: NAOSDPretrain) -> dict[str, Any] | None:
    """What `write` left in `config.out`; None if there is nothing.

    Raises:
        InputError: another recipe left it; the message names the fields that differ.
    """
    file = Path(config.out) / FILE
    if not file.is_file():
        return None
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    was, now = json.loads(state["recipe"]), json.loads(_recipe(config))
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if changed:
        shown = "; ".join(f"{key}: was {was.get(key)}, is {now.get(key)}" for key in changed)
        raise InputError(
            f"{file} is an interrupted run of another recipe ({shown}). Give the recipe that began it, or another "
            "out, or delete the file to begin again"
        )
    return state


def write(config: NAOSDPretrain, state: Mapping[str, Any]) -> None:
    """Store `state` with the recipe that it belongs to; the old file stays until the new one is complete."""
    file = Path(config.out) / FILE
    partial = file.with_suffix(".partial")
    torch.save({**state, "recipe": _recipe(config)}, partial)
    partial.replace(file)


def _recipe(config: NAOSDPretrain) -> str:
    return config.model_dump_json(exclude={**FREE, "student": {"checkpoint_every"}})
