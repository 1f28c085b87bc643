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
from actors.pool import Pool, idle_share
from actors.scoring import RewardPool, pool_values
from actors.tagging import tagger_pools
from actors.weight_sync import WeightSync
from rl.advantages import AdvantageBatch, to_reward_weight
from rl.config.run import RunConfig
from rl.data.source import TaskSource
from rl.evaluation.sheets import sample_rows, sheet_path, write_sample_sheet
from rl.metrics import Key, Metrics, Value, batch_values
from rl.types import F64, RolloutGroup

if TYPE_CHECKING:
    from learner.report import TrainReport


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
        parts = self._parts()
        try:
            if self.step == 0:
                self._log(await parts.evaluator.run("start", 0))
            await parts.versions.publish((await parts.sync.push()).version)
            await self._steps(parts)
            if self.step == self.config.train.steps:
                self._log(await parts.evaluator.run("end", self.step))
        finally:
            for queue in parts.queues:
                queue.close()
        return Outcome(self.step, interrupted=self.step < self.config.train.steps)

    def _parts(self) -> "_Parts":
        config, cluster = self.config, self.cluster
        pools = [RewardPool(reward, cluster.rewards[reward.name]) for reward in config.rewards]
        taggers = tagger_pools(config, cluster.taggers)
        source, versions = TaskSource(config.data, config.seed), Versions()
        lanes = Sampling(config, source, self.ledger, pools, cluster.workers, versions, taggers.get("data"))
        sync = WeightSync(cluster.learners[0], cluster.workers, config.learner.deadline_s)
        evaluator = Evaluator(config, self.run_dir, lanes, pools, sync, taggers.get("eval.data"))
        return _Parts(lanes, pools, [*pools, *taggers.values()], sync, versions, evaluator)

    async def _steps(self, parts: "_Parts") -> None:
        slots: dict[int, list[asyncio.Task[ScoredGroup]]] = {}
        try:
            while self.step < self.config.train.steps and not self.stop.is_set():
                for step in range(self.step, self._horizon(parts.evaluator) + 1):
                    if step not in slots:
                        slots[step] = [
                            asyncio.create_task(parts.lanes.fill(step))
                            for _ in range(self.config.train.groups_per_step)
                        ]
                due = slots.pop(self.step)
                await self._one_step(due, [task for later in slots.values() for task in later], parts)
                due.clear()
                if self.step % self.config.checkpoint.every == 0:
                    await self._save()
                if parts.evaluator.due(self.step) and self.step < self.config.train.steps:
                    self._log(await parts.evaluator.run("step", self.step))
                    await parts.sync.push()
            if self._saved != self.step:
                await self._save()
        finally:
            for tasks in slots.values():
                for task in tasks:
                    task.cancel()

    async def _one_step(
        self, due: list[asyncio.Task[ScoredGroup]], later: list[asyncio.Task[ScoredGroup]], parts: "_Parts"
    ) -> None:
        """Wait for this step's groups, train, push. Its groups are held by nothing when it returns: at real size they
        are gigabytes of the object store."""
        watch = Stopwatch()
        groups = await _all(due, later)
        report, batch = await self._train(groups)
        trained = Stopwatch()
        push = await parts.sync.push(must_change=report.grad_norm > 0)
        await parts.versions.publish(push.version)
        self.step += 1
        step_s = watch()
        values = {**report.values(), **push.values(trained()), **self._lane_values(groups, parts, push.version, step_s)}
        await self._record(groups, batch, {**values, Key.IDLE_LEARNER: idle_share(report.train_s, step_s)})

    def _horizon(self, evaluator: Evaluator) -> int:
        """The last step that may be sampled now: evaluation borrows the workers, so no lane runs across one."""
        horizon = min(self.step + self.config.train.max_policy_lag, self.config.train.steps - 1)
        for step in range(self.step, horizon):
            if evaluator.due(step + 1):
                return step
        return horizon

    async def _train(self, groups: list[ScoredGroup]) -> "tuple[TrainReport, AdvantageBatch]":
        from learner.report import over_ranks

        scores = np.stack([group.table.scores for group in groups])
        batch = self.config.advantage.advantages(scores, self.config.rewards, [group.task for group in groups])
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
        return over_ranks(reports), batch

    def _lane_values(
        self, groups: Sequence[ScoredGroup], parts: "_Parts", version: int, step_s: float
    ) -> dict[str, Value]:
        """What the sampling side did since the last step; its clocks start again."""
        clock, parts.lanes.clock = parts.lanes.clock, LaneClock()
        workers_s, has_tagger = step_s * self.config.rollout.workers, self.config.data.tagger is not None
        ages = [version - 1 - group.receipt.policy_version for group in groups]
        return {
            **clock.values(available_s=workers_s, has_tagger=has_tagger),
            **pool_values(parts.pools, step_s, clock.failed),
            Key.POLICY_AGE_MEAN: float(np.mean(ages)),
            Key.POLICY_AGE_MAX: float(max(ages)),
            Key.TIME_STEP: step_s,
            Key.PERF_IMAGES: sum(group.receipt.images for group in groups) / step_s,
        }

    async def _record(self, groups: list[ScoredGroup], batch: AdvantageBatch, values: Mapping[str, Value]) -> None:
        clip = self.config.objective.reward_weight_clip
        r = None if clip is None else to_reward_weight(batch.advantages, clip)
        scores = np.stack([group.table.scores for group in groups])
        self._log({**values, **batch_values(self.config.rewards, scores, batch, r)})
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


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a run's event loop works with."""

    lanes: Sampling
    pools: list[RewardPool]
    queues: list[Pool[Any]]
    """The pools and the taggers', to be closed."""
    sync: WeightSync
    versions: Versions
    evaluator: Evaluator


async def _all(tasks: list[asyncio.Task[ScoredGroup]], later: list[asyncio.Task[ScoredGroup]]) -> list[ScoredGroup]:
    """Wait for `tasks`; a failure in `later` is raised at once instead of when its step comes."""
    waiting = {*tasks}
    while waiting:
        done, _ = await asyncio.wait({*waiting, *(t for t in later if not t.done())}, return_when="FIRST_COMPLETED")
        for task in done:
            task.result()
        waiting -= done
    return [task.result() for task in tasks]
