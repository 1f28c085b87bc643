"""What the loops of online and offline runs share: learner ranks, ledger, checkpoints, metrics, stopping."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.checkpoints import CHECKPOINTS_DIR, Checkpoints
from actors.deadline import all_within
from actors.ledger import Ledger
from actors.monitor import Monitor, Stopwatch
from rl.config.training import TrainingSection
from rl.metrics import Metrics, Value
from rl.types import F64

if TYPE_CHECKING:
    from learner.report import TrainReport


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    interrupted: bool


class TrainingLoop:
    """Owns the step, the ledger and the checkpoints; every wait has a deadline."""

    def __init__(self, config: TrainingSection, learners: Sequence[Any], monitor: Monitor, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.monitor = monitor
        self.ledger = Ledger(config.train.groups_per_step)
        self.step = 0
        self.stop = asyncio.Event()
        """Set by an interrupt: the current step is finished and saved, then the run ends."""
        self._settings = config
        self._learners = learners
        self._saved: int | None = None
        self._checkpoints = Checkpoints(run_dir / CHECKPOINTS_DIR, config.checkpoint)
        self._clock = Stopwatch()

    @property
    def going(self) -> bool:
        """Whether there is another step to take."""
        return self.step < self._settings.train.steps and not self.stop.is_set()

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.step, interrupted=self.step < self._settings.train.steps)

    async def train(
        self, tasks: Sequence[Any], groups: Sequence[Any], advantages: F64, ordinals: Sequence[int]
    ) -> "TrainReport":
        """One batch over all ranks: references to N tasks and N groups, advantages `[N, G]` or `[N, G, h, w]`."""
        from learner.report import over_ranks

        learner = self._settings.learner
        share = len(ordinals) // learner.ranks
        # float32 halves what a map weighs; the few numbers of members stay exact
        sent = advantages if advantages.ndim == 2 else advantages.astype(np.float32)
        calls = []
        for rank, actor in enumerate(self._learners):
            mine = slice(rank * share, (rank + 1) * share)
            rows = list(sent[mine])
            calls.append(actor.train.remote(rows, *tasks[mine], *groups[mine]))
        reports: list[TrainReport] = await all_within(calls, learner.deadline_s, "learner.train", "learner.deadline_s")
        self.ledger.train(list(ordinals))
        return over_ranks(reports)

    def log(self, values: Mapping[str, Value]) -> None:
        """Log the values of the finished step, if there are any."""
        if values:
            self.monitor.log(Metrics(self.step, self._clock(), values))

    async def load(self) -> None:
        """Resume from the newest checkpoint."""
        deadline_s = self._settings.learner.deadline_s
        self.step, self.ledger = await self._checkpoints.load(self._learners, deadline_s)
        self._saved = self.step

    async def save_if_due(self, *, at_the_end: bool = False) -> None:
        """Save every `checkpoint.every` steps, and at the end of a run."""
        if self._saved != self.step and (at_the_end or self.step % self._settings.checkpoint.every == 0):
            await self._checkpoints.save(self.step, self.ledger, self._learners, self._settings.learner.deadline_s)
            self._saved = self.step
