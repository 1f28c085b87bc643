"""The loop of a run, in the order of the picture in actors/launch.py.

    push(version 0); for each step:
        groups   <- lanes tag, sample and score, at most max_policy_lag versions behind
        A        <- aggregation over the whole batch
        learner  <- train(groups, A)                version + 1
        workers  <- push(version), every echo equal  -> lanes of the next step may sample

Sync (`max_policy_lag` 0) and async are this one loop: only the gate in `Sampling.fill` differs.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.checkpoints import CHECKPOINTS_DIR, Checkpoints
from actors.deadline import all_within, within
from actors.evaluate import Evaluator
from actors.lanes import LaneClock, Sampling, ScoredGroup, Stopwatch, Versions
from actors.launch import Cluster
from actors.ledger import Ledger
from actors.monitor import Monitor
from actors.pool import Pool
from actors.scoring import RewardPool
from actors.step_metrics import step_values
from actors.tagging import tagger_pools
from actors.weight_sync import PushReport, WeightSync
from rl.advantages import AdvantageBatch, to_reward_weight
from rl.batch_advantages import batch_advantages
from rl.config.objective import NFTConfig
from rl.config.run import RunConfig
from rl.data.source import TaskSource
from rl.evaluation.sheets import sample_rows, sheet_path, write_sample_sheet
from rl.metrics import Metrics, Value
from rl.types import F64, RolloutGroup

if TYPE_CHECKING:
    from learner.learner import TrainReport


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    interrupted: bool


class Controller:
    """Owns the ledger, the age bound, checkpoints and metrics; every wait has a deadline."""

    def __init__(self, config: RunConfig, cluster: Cluster, monitor: Monitor, run_dir: Path) -> None:
        self.config = config
        self.cluster = cluster
        self.monitor = monitor
        self.run_dir = run_dir
        self.ledger = Ledger()
        self.step = 0
        self._saved: int | None = None
        self.stop = asyncio.Event()
        """Set by an interrupt: the step in progress is finished and saved, then the run ends."""
        self._checkpoints = Checkpoints(run_dir / CHECKPOINTS_DIR, config.checkpoint)
        self._clock = Stopwatch()

    async def run(self, *, resume: bool) -> Outcome:
        """Train to the last step, or to the step during which `stop` was set."""
        if resume:
            self.step, self.ledger = await self._checkpoints.load(self.cluster.learners, self.config.learner.deadline_s)
            self._saved = self.step
        pools = [RewardPool(r, self.cluster.rewards[r.name]) for r in self.config.rewards]
        taggers = tagger_pools(self.config, self.cluster.taggers)
        source = TaskSource(self.config.data, self.config.seed)
        versions = Versions()
        lanes = Sampling(self.config, source, self.ledger, pools, self.cluster.workers, versions, taggers.get("data"))
        sync = WeightSync(self.cluster.learners[0], self.cluster.workers, self.config.learner.deadline_s)
        evaluator = Evaluator(self.config, self.run_dir, lanes, pools, sync, taggers.get("eval.data"))
        try:
            if self.step == 0:
                self._log(await evaluator.run("start", 0))
            await versions.publish((await sync.push()).version)
            await self._steps(lanes, pools, sync, versions, evaluator)
            if self.step == self.config.train.steps:
                self._log(await evaluator.run("end", self.step))
        finally:
            queues: list[Pool[Any]] = [*pools, *taggers.values()]
            for queue in queues:
                queue.close()
        return Outcome(self.step, interrupted=self.step < self.config.train.steps)

    async def _steps(
        self, lanes: Sampling, pools: Sequence[RewardPool], sync: WeightSync, versions: Versions, evaluator: Evaluator
    ) -> None:
        slots: dict[int, list[asyncio.Task[ScoredGroup]]] = {}
        try:
            while self.step < self.config.train.steps and not self.stop.is_set():
                for step in range(self.step, self._horizon(evaluator) + 1):
                    if step not in slots:
                        slots[step] = [
                            asyncio.create_task(lanes.fill(step)) for _ in range(self.config.train.groups_per_step)
                        ]
                watch = Stopwatch()
                groups = await _all(slots.pop(self.step), [task for later in slots.values() for task in later])
                report, batch = await self._train(groups)
                trained = Stopwatch()
                push = await sync.push(must_change=report.grad_norm > 0)
                await versions.publish(push.version)
                self.step += 1
                await self._record(groups, batch, report, push, lanes, pools, watch(), trained())
                if self.step % self.config.checkpoint.every == 0:
                    await self._save()
                if evaluator.due(self.step) and self.step < self.config.train.steps:
                    self._log(await evaluator.run("step", self.step))
                    await sync.push()
            if self._saved != self.step:
                await self._save()
        finally:
            for tasks in slots.values():
                for task in tasks:
                    task.cancel()

    def _horizon(self, evaluator: Evaluator) -> int:
        """The last step that may be sampled now: evaluation borrows the workers, so no lane runs across one."""
        horizon = min(self.step + self.config.train.max_policy_lag, self.config.train.steps - 1)
        for step in range(self.step, horizon):
            if evaluator.due(step + 1):
                return step
        return horizon

    async def _train(self, groups: list[ScoredGroup]) -> "tuple[TrainReport, AdvantageBatch]":
        scores = np.stack([group.table.scores for group in groups])
        batch = batch_advantages(self.config, scores, [group.task for group in groups])
        share = len(groups) // self.config.learner.ranks
        calls = []
        for rank, learner in enumerate(self.cluster.learners):
            mine = slice(rank * share, (rank + 1) * share)
            carriers = [g.task_ref for g in groups[mine]] + [g.group_ref for g in groups[mine]]
            rows: list[F64] = list(batch.advantages[mine])
            calls.append(learner.train.remote(rows, *carriers))
        deadline_s = self.config.learner.deadline_s
        reports: list[TrainReport] = await all_within(calls, deadline_s, "learner.train", "learner.deadline_s")
        self.ledger.train([group.receipt.ordinal for group in groups])
        return reports[0], batch

    async def _record(
        self, groups: list[ScoredGroup], batch: AdvantageBatch, report: "TrainReport", push: PushReport,
        lanes: Sampling, pools: Sequence[RewardPool], step_s: float, lag_s: float,
    ) -> None:  # fmt: skip
        objective = self.config.objective
        r = None
        if isinstance(objective, NFTConfig):
            r = to_reward_weight(batch.advantages, objective.adv_clip_max)
        values = step_values(self.config, groups, batch, r, report, push, lanes.clock, pools, step_s, lag_s)
        lanes.clock = LaneClock()
        self._log(values)
        if self.step % self.config.monitor.sample_every == 0 or self.step == self.config.train.steps:
            await self._sheet(groups[0], batch.advantages[0], None if r is None else r[0])

    async def _sheet(self, scored: ScoredGroup, advantages: F64, r: F64 | None) -> None:
        group: RolloutGroup = await within(
            scored.group_ref, self.config.rollout.deadline_s, "pixels of a sample sheet", "rollout.deadline_s"
        )
        path = sheet_path(self.run_dir, self.step, group.ordinal)
        write_sample_sheet(path, scored.task, group, scored.table, advantages, r)
        self.monitor.log_samples(self.step, path, sample_rows(scored.task, group, scored.table, advantages, r))

    def _log(self, values: Mapping[str, Value]) -> None:
        if values:
            self.monitor.log(Metrics(self.step, self._clock(), values))

    async def _save(self) -> None:
        await self._checkpoints.save(self.step, self.ledger, self.cluster.learners, self.config.learner.deadline_s)
        self._saved = self.step


async def _all(tasks: list[asyncio.Task[ScoredGroup]], later: list[asyncio.Task[ScoredGroup]]) -> list[ScoredGroup]:
    """Wait for `tasks`; a failure in `later` is raised at once instead of when its step comes."""
    waiting = {*tasks}
    while waiting:
        done, _ = await asyncio.wait({*waiting, *(t for t in later if not t.done())}, return_when="FIRST_COMPLETED")
        for task in done:
            task.result()
        waiting -= done
    return [task.result() for task in tasks]
