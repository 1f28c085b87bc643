"""What the loops of online and offline runs share: learner ranks, ledger, checkpoints, metrics, stopping."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.checkpoint_files import CHECKPOINTS_DIR, newest_checkpoint
from actors.checkpoints import Checkpoints, ControllerState, open_checkpoint
from actors.deadline import all_within
from actors.ledger import Ledger
from actors.monitor import Monitor, Stopwatch
from actors.same_run import RunIdentity
from rl.config.training import TrainingSection
from rl.errors import MissingInput
from rl.metrics import Key, Metrics, Value, names_of
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
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        """Step and scores of the last evaluation."""
        self._identity: RunIdentity | None = None
        self._checkpoints = Checkpoints(run_dir / CHECKPOINTS_DIR, config.checkpoint)
        self._clock = Stopwatch()

    @property
    def going(self) -> bool:
        """Whether there is another step to take."""
        return self.step < self._settings.train.steps and not self.stop.is_set()

    def finish(self) -> bool:
        """End after the step in progress; False before the first checkpoint of a process: nothing is in progress."""
        if self.step == 0 and self._saved is None:
            return False
        self.stop.set()
        return True

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
        # as precise as the maps that cells come from; the few numbers of members stay exact
        sent = advantages if advantages.ndim == 2 else advantages.astype(np.float16)
        calls = []
        for rank, actor in enumerate(self._learners):
            mine = slice(rank * share, (rank + 1) * share)
            rows = list(sent[mine])
            calls.append(actor.train.remote(rows, *tasks[mine], *groups[mine]))
        reports: list[TrainReport] = await all_within(calls, learner.deadline_s, "learner.train", "learner.deadline_s")
        self.ledger.train(list(ordinals))
        return over_ranks(reports)

    def log(self, values: Mapping[str, Value]) -> None:
        """Log the values of the finished step, if there are any. An evaluation's may make its step the best so far."""
        scores = _evaluation(values)
        if scores:
            self._evaluated = self.step, scores
        if values:
            self.monitor.log(Metrics(self.step, self._clock(), values))

    async def begin(self, *, resume: bool) -> None:
        """Resume from the newest checkpoint, or save the first one: whatever is trained can then be resumed."""
        if resume:
            await self.load()
        else:
            await self.save_if_due()

    def extra_state(self) -> Mapping[str, float]:
        """Numbers that a resumed run needs in addition, by names of the loop's choice."""
        return {}

    def take_extra_state(self, state: Mapping[str, float]) -> None:
        """What `extra_state` gave."""

    async def save_if_due(self, *, at_the_end: bool = False) -> None:
        """Save every `checkpoint.every` steps, after the best evaluation so far, and at the end of a run."""
        due = at_the_end or self.step % self._settings.checkpoint.every == 0
        if self._saved != self.step and (due or self._checkpoints.is_best(self._scores())):
            await self._save()

    async def _save(self) -> None:
        # taken before the first wait: groups of later steps are issued meanwhile
        step, ledger, extra, scores = self.step, self.ledger.to_json(), dict(self.extra_state()), self._scores()
        if self._identity is None:
            self._identity = await asyncio.to_thread(RunIdentity.of, self._settings)
        state = ControllerState(step, ledger, extra, scores, self._identity.to_json())
        await self._checkpoints.save(state, self._learners, self._settings.learner.deadline_s)
        self._saved = step

    async def load(self) -> None:
        """The newest checkpoint, into this process and every rank; says which keys were changed since."""
        newest = newest_checkpoint(self._checkpoints.folder)
        if newest is None:
            raise MissingInput(f"{self._checkpoints.folder}: no checkpoint to resume from; run without --resume")
        state, files = open_checkpoint(newest)
        self._identity = await asyncio.to_thread(RunIdentity.of, self._settings)
        changes = map(str, self._identity.changes(state.identity))
        print("\n  ".join([f"resuming from {newest.name}", *changes]), flush=True)
        shared = ray.put(files)
        calls = [learner.load.remote(shared) for learner in self._learners]
        deadline_s = self._settings.learner.deadline_s
        await all_within(calls, deadline_s, f"{newest.name}: learner.load", "learner.deadline_s")
        self.step, self.ledger = state.step, Ledger.from_json(state.ledger)
        self.take_extra_state(state.extra)
        self._saved = self.step

    def _scores(self) -> dict[str, float]:
        """Of the evaluation after this step, if there was one."""
        step, scores = self._evaluated
        return dict(scores) if step == self.step else {}


def _evaluation(values: Mapping[str, Value]) -> dict[str, float]:
    """Reward -> mean; empty unless these are an evaluation's values."""
    means = {name: values[Key.EVAL_MEAN.of(name)] for name in names_of(Key.EVAL_MEAN, values)}
    return {name: float(mean) for name, mean in means.items() if not isinstance(mean, list)}
