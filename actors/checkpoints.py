"""Checkpoints on disk: complete or absent; only the newest few are kept.

checkpoints/step-000050/{controller.json, learner.json, ema.safetensors, old-*.safetensors, deepspeed/}
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.deadline import all_within
from actors.ledger import Ledger
from rl.config.training import CheckpointSection
from rl.errors import MissingInput

CHECKPOINTS_DIR = "checkpoints"
_PREFIX = "step-"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step; unfinished ones have another name."""
    found = sorted(folder.glob(f"{_PREFIX}*"))
    return found[-1] if found else None


class Checkpoints:
    """Saves and loads the learner together with the ledger."""

    def __init__(self, folder: Path, config: CheckpointSection) -> None:
        self.folder = folder
        self._config = config

    async def save(self, step: int, ledger: Ledger, learners: Sequence[Any], deadline_s: float) -> Path:
        """Write under a temporary name, then rename; afterwards delete old ones beyond `keep`."""
        final = self.folder / f"{_PREFIX}{step:06d}"
        partial = self.folder / f"partial-{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        await _every(learners, "save", partial.absolute(), deadline_s)
        (partial / "controller.json").write_text(json.dumps({"step": step, "ledger": ledger.to_json()}))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in sorted(self.folder.glob(f"{_PREFIX}*"))[: -self._config.keep]:
            shutil.rmtree(old)
        return final

    async def load(self, learners: Sequence[Any], deadline_s: float) -> tuple[int, Ledger]:
        """Load the newest checkpoint; returns the number of finished steps and the ledger."""
        newest = newest_checkpoint(self.folder)
        if newest is None:
            raise MissingInput(f"{self.folder}: no checkpoint to resume from; run without --resume")
        state = json.loads((newest / "controller.json").read_text())
        await _every(learners, "load", newest.absolute(), deadline_s)
        return state["step"], Ledger.from_json(state["ledger"])


async def _every(learners: Sequence[Any], method: str, folder: Path, deadline_s: float) -> None:
    calls = [getattr(learner, method).remote(folder) for learner in learners]
    await all_within(calls, deadline_s, f"checkpoint {method} {folder}", "learner.deadline_s")
