"""The checkpoints of a run: the learner's state and the driver's, which of them are kept, and how one is resumed.

Ranks give bytes, and only the driver writes: no folder has to be shared between nodes.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from actors.checkpoint_files import (
    NotWhole,
    checkpoint_of,
    checkpoints_in,
    read_checkpoint,
    remove_checkpoint,
    step_of,
    write_checkpoint,
)
from actors.deadline import all_within
from actors.same_run import RunIdentity
from learner.state import StateFiles
from rl.config.training import CheckpointSection

CONTROLLER_FILE = "controller.json"


@dataclass(frozen=True)
class ControllerState:
    """What the driver has to know again."""

    step: int
    """Finished steps."""
    ledger: Mapping[str, Any]
    extra: Mapping[str, float]
    """What the loop wants to find again, such as the evaluation's start values."""
    scores: Mapping[str, float]
    """Mean of every reward in the evaluation after this step; empty where there was none."""
    run: Mapping[str, Any]
    """A `RunIdentity`."""

    @classmethod
    def in_files(cls, files: StateFiles, checkpoint: Path) -> Self:
        """Refuse a folder that was renamed: its name is what decides which checkpoint is the newest."""
        state = cls(**json.loads(files.contents[CONTROLLER_FILE].tobytes()))
        if state.step != step_of(checkpoint):
            raise NotWhole(f"{checkpoint}/{CONTROLLER_FILE}: expected step {step_of(checkpoint)}, got {state.step}")
        return state

    @property
    def identity(self) -> RunIdentity:
        return RunIdentity.from_json(self.run)


class Checkpoints:
    """Those in one folder: the newest `keep`, and the best."""

    def __init__(self, folder: Path, config: CheckpointSection) -> None:
        self.folder = folder
        self._keep = config.keep
        self._name = config.best or ""

    async def save(self, state: ControllerState, learners: Sequence[Any], deadline_s: float) -> Path:
        """Take every rank's state, write it all, then remove the checkpoints that are not to be kept.

        Raises:
            NotSaved: the disk refused; the older ones are whole.
        """
        checkpoint = checkpoint_of(self.folder, state.step)
        scores = self._scores
        calls = [learner.save.remote() for learner in learners]
        what = f"checkpoint {checkpoint.name}: learner.save"
        parts: list[StateFiles] = await all_within(calls, deadline_s, what, "learner.deadline_s")
        await asyncio.to_thread(_write, checkpoint, state, parts)
        if self._name in state.scores:
            scores[checkpoint] = state.scores[self._name]
        best = max(scores, key=scores.__getitem__, default=None)
        for old in checkpoints_in(self.folder)[: -self._keep]:
            if old != best:
                remove_checkpoint(old)
                scores.pop(old, None)
        return checkpoint

    def is_best(self, scores: Mapping[str, float]) -> bool:
        """Whether these scores are above those of all checkpoints."""
        name = self._name
        return name in scores and all(scores[name] > score for score in self._scores.values())

    @cached_property
    def _scores(self) -> dict[Path, float]:
        """Those of earlier processes, then kept up to date."""
        paths = checkpoints_in(self.folder) if self._name else []
        found = {path: read_controller(path).scores for path in paths}
        return {path: scores[self._name] for path, scores in found.items() if self._name in scores}


def _write(checkpoint: Path, state: ControllerState, parts: Sequence[StateFiles]) -> None:
    contents = {name: content for part in parts for name, content in part.verified().contents.items()}
    own = json.dumps(asdict(state), allow_nan=False).encode()
    write_checkpoint(checkpoint, StateFiles.of({CONTROLLER_FILE: own, **contents}))


def read_controller(checkpoint: Path) -> ControllerState:
    """The driver's state alone, unverified."""
    path = checkpoint / CONTROLLER_FILE
    try:
        return ControllerState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise NotWhole(f"{path}: expected the state of a run, got {error}; remove {checkpoint}") from error


def open_checkpoint(checkpoint: Path) -> tuple[ControllerState, StateFiles]:
    """The driver's state, and all files for the ranks, verified.

    Raises:
        NotWhole: a file is missing or changed.
    """
    files = read_checkpoint(checkpoint)
    return ControllerState.in_files(files, checkpoint), files
