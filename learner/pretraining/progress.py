"""How far the student stage is, on disk: the command that was interrupted, given again, resumes from there."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl.config.pretrain import NAOSDPretrain
from rl.errors import InputError

if TYPE_CHECKING:
    from learner.pretraining.naosd import Distillation

FILE = "student_progress.pt"
FREE = {"out": True, "device": True, "threads": True, "held_out": True, "sampler_steps": True}
"""Fields that may differ when a stage resumes; so may `student.checkpoint_every`."""


def read(config: NAOSDPretrain) -> dict[str, Any] | None:
    """What `write` left in `config.out`, None where there is nothing.

    Raises:
        InputError: it was left by another recipe; the message names the fields that differ.
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


def write(run: "Distillation", done: int) -> None:
    """Everything that step `done` (from 0) depends on; the old file stays until the new one is whole."""
    file = Path(run.config.out) / FILE
    state = {
        "recipe": _recipe(run.config),
        "done": done,
        "drawn": run.drawn,
        "crops": run.source.state,
        "trained": [p.detach() for p in _trained(run)],
        "optimizers": [run.optimizer.state_dict(), run.fake_optimizer.state_dict()],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(run.config.device) if _on_cuda(run) else None,
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


@torch.no_grad()
def resume(run: "Distillation", state: dict[str, Any]) -> int:
    """Bring `run` to where `write` was called; returns the number of steps that are done."""
    for parameter, value in zip(_trained(run), state["trained"], strict=True):
        parameter.copy_(value)
    for optimizer, kept in zip((run.optimizer, run.fake_optimizer), state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    run.drawn, run.source.state = state["drawn"], state["crops"]
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and _on_cuda(run):
        torch.cuda.set_rng_state(state["cuda"], run.config.device)
    done: int = state["done"]
    return done


def _trained(run: "Distillation") -> list[torch.nn.Parameter]:
    return [p for model in (run.both, run.teacher) for p in model.parameters() if p.requires_grad]


def _on_cuda(run: "Distillation") -> bool:
    return torch.device(run.config.device).type == "cuda"


def _recipe(config: NAOSDPretrain) -> str:
    return config.model_dump_json(exclude={**FREE, "student": {"checkpoint_every"}})
