"""The loop of a run, in the order of the picture in actors/launch.py.

    push(version 0); for each step:
        groups   <- lanes tag, sample and score, at most max_policy_lag versions behind
        A        <- aggregation over the whole batch
        learner  <- train(groups, A)                version + 1
        workers  <- push(version), every echo equal  -> lanes of the next step may sample

Sync (`max_policy_lag` 0) and async runs share this loop: only the gate in `Sampling.fill` differs.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.autoscale import Autoscaler
from actors.control import ControlPanel, RunStatus, here
from actors.deadline import all_within, within
from actors.evaluate import Evaluator
from actors.fleet import Fleet
from actors.lanes import LaneClock, RolloutPool, Sampling, ScoredGroup, Versions
from actors.launch import ROLLOUT, TWO_REFERENCES, Cluster, refuse_two_references, reward_role, tagger_role
from actors.member import Member
from actors.monitor import Monitor, Stopwatch
from actors.pool import Pool, idle_share
from actors.role import NotGreeted, Role
from actors.scoring import RewardPool, pool_values
from actors.tagging import tagger_pools
from actors.tasks import Alarm, Tasks
from actors.training import Outcome, TrainingLoop
from actors.weight_sync import WeightSync
from rl.advantages import AdvantageBatch, to_reward_weight
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.evaluation.heat import write_maps_sheet
from rl.evaluation.sheets import sheet_path, write_sample_sheet
from rl.metrics import Key, Value, batch_values
from rl.spatial import per_member
from rl.types import F64, RolloutGroup

if TYPE_CHECKING:
    from learner.report import TrainReport


STAGES = (Key.TIME_TAG, Key.TIME_SAMPLE, Key.TIME_SCORE, Key.TIME_TRAIN, Key.PUBLISH_TOTAL, Key.TIME_STEP)


class Controller(TrainingLoop):
    """The loop of an online run; in addition to the common loop it enforces the age bound."""

    def __init__(self, config: RunConfig, cluster: Cluster, monitor: Monitor, run_dir: Path) -> None:
        super().__init__(config, cluster.learners, monitor, run_dir)
        self.config = config
        self.cluster = cluster
        self.last: dict[str, Value] = {}
        """Figures of the last step."""
        self._before: dict[str, float] = {}
        """Mean of every reward in the evaluation before the first step."""

    async def run(self, *, resume: bool) -> Outcome:
        """Train to the last step, or until the end of the step during which `stop` was set."""
        parts = self._parts()
        parts.background.start(self._panel(parts).run())
        try:
            await parts.alarm.guard(self._run(parts, resume=resume))
        finally:
            parts.close()
        return self.outcome

    def extra_state(self) -> Mapping[str, float]:
        return self._before

    def take_extra_state(self, state: Mapping[str, float]) -> None:
        self._before.update(state)

    async def _run(self, parts: "_Parts", *, resume: bool) -> None:
        started = time.perf_counter()
        await asyncio.gather(parts.fleet.open(), self._first_push(parts, resume=resume))
        print(f"ready after {time.perf_counter() - started:.0f} s", flush=True)
        if self.step == 0 and self.going:
            self.log(await parts.evaluator.run("start", 0))
        await parts.versions.publish((await parts.sync.push()).version)
        await self._steps(parts)
        if self.step == self.config.train.steps:
            self.log(await parts.evaluator.run("end", self.step))

    def _panel(self, parts: "_Parts") -> ControlPanel:
        def status() -> RunStatus:
            last = parts.sync.last
            roles = parts.fleet.status({pool.role.name: pool.queued for pool in parts.queues})
            pushed, push_s = (None, 0.0) if last is None else (last.version, last.total_s)
            stages = {key.value: value for key in STAGES if isinstance(value := self.last.get(key), float)}
            name, steps = self.config.run.name, self.config.train.steps
            return RunStatus(time.time(), *here(), name, self.step, steps, pushed, push_s, stages, roles)

        def stop() -> str:
            self.stop.set()
            return f"step {self.step + 1} is finished and saved, then the run ends"

        return ControlPanel(self.run_dir, status, parts.fleet.resize, stop)

    async def _first_push(self, parts: "_Parts", *, resume: bool) -> None:
        """Workers become ready with it, as soon as they are loaded."""
        deadline_s = self.config.learner.deadline_s
        digests = await all_within(self.cluster.started, deadline_s, "start of the learner", "learner.deadline_s")
        refuse_two_references(digests)
        parts.reference.set_result(digests[0])
        await self.begin(resume=resume)
        parts.lanes.ledger = self.ledger
        await parts.sync.push()

    def _parts(self) -> "_Parts":
        config, alarm = self.config, Alarm()
        fleet = Fleet(Role(recipe, config.fleet, alarm) for recipe in self.cluster.roles)
        pools = [RewardPool(reward, fleet[reward_role(reward.name)]) for reward in config.rewards]
        taggers = tagger_pools(config, {where: fleet[tagger_role(where)] for where in config.taggers})
        source, versions = TaskSource(config.data, config.seed), Versions()
        workers = RolloutPool(config, fleet[ROLLOUT])
        lanes = Sampling(config, source, self.ledger, workers, pools, versions, taggers.get("data"))
        sync = WeightSync(self.cluster.learners[0], fleet[ROLLOUT], config.learner.deadline_s)
        evaluator = Evaluator(config, self.run_dir, lanes, sync, self._before, taggers.get("eval.data"))
        reference: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        async def greet(worker: Member, digest: str | None) -> None:
            if digest != await asyncio.shield(reference):
                raise NotGreeted(TWO_REFERENCES.format(digests=[reference.result(), digest]))
            await sync.admit(worker)

        fleet[ROLLOUT].greet = greet
        queues: list[Pool[Any]] = [workers, *pools, *taggers.values()]
        scaler = None if config.rollout.autoscale is None else Autoscaler(config.rollout.autoscale)
        background = Tasks(alarm)
        return _Parts(alarm, background, fleet, lanes, pools, queues, sync, versions, evaluator, reference, scaler)

    async def _steps(self, parts: "_Parts") -> None:
        slots: dict[int, list[asyncio.Task[ScoredGroup]]] = {}
        try:
            while self.going:
                for step in range(self.step, self._horizon(parts.evaluator) + 1):
                    if step not in slots:
                        slots[step] = [
                            asyncio.create_task(parts.lanes.fill(step, slot))
                            for slot in range(self.config.train.groups_per_step)
                        ]
                due = slots.pop(self.step)
                await self._one_step(due, [task for later in slots.values() for task in later], parts)
                due.clear()
                if parts.evaluator.due(self.step) and self.going:
                    self.log(await parts.evaluator.run("step", self.step))
                    await parts.sync.push()
                await self.save_if_due()
            await self.save_if_due(at_the_end=True)
        finally:
            for tasks in slots.values():
                for task in tasks:
                    task.cancel()

    async def _one_step(
        self, due: list[asyncio.Task[ScoredGroup]], later: list[asyncio.Task[ScoredGroup]], parts: "_Parts"
    ) -> None:
        """Wait for this step's groups, train, push. Keeps no reference to the groups when it returns: at real size they
        take gigabytes of the object store."""
        watch = Stopwatch()
        groups = await _all(due, later)
        report, batch = await self._train(groups)
        trained = Stopwatch()
        push = await parts.sync.push(must_change=report.grad_norm > 0)
        await parts.versions.publish(push.version)
        self.step += 1
        step_s = watch()
        idle = idle_share(report.train_s, step_s)
        lanes = self._lane_values(groups, parts, push.version, step_s)
        self.last = {**report.values(), **push.values(trained()), **lanes, Key.IDLE_LEARNER: idle}
        parts.rescale(idle, float(np.mean(lanes[Key.IDLE_ROLLOUT])))
        await self._record(groups, batch, self.last)

    def _horizon(self, evaluator: Evaluator) -> int:
        """The last step that may be sampled now: an evaluation borrows the workers, so no lane runs across it."""
        horizon = min(self.step + self.config.train.max_policy_lag, self.config.train.steps - 1)
        for step in range(self.step, horizon):
            if evaluator.due(step + 1):
                return step
        return horizon

    async def _train(self, groups: list[ScoredGroup]) -> "tuple[TrainReport, AdvantageBatch]":
        tables, tasks = [group.table for group in groups], [group.task for group in groups]
        batch = self.config.advantage.of_tables(tables, self.config.rewards, tasks, self.config.map_cell_px)
        report = await self.train(
            [group.task_ref for group in groups],
            [group.group_ref for group in groups],
            batch.advantages,
            [group.receipt.ordinal for group in groups],
        )
        return report, batch

    def _lane_values(
        self, groups: Sequence[ScoredGroup], parts: "_Parts", version: int, step_s: float
    ) -> dict[str, Value]:
        """What the sampling side did since the last step; resets its clocks."""
        clock, parts.lanes.clock = parts.lanes.clock, LaneClock()
        workers_s, has_tagger = step_s * max(1, len(parts.fleet[ROLLOUT].ready)), self.config.data.tagger is not None
        ages = [version - 1 - group.receipt.policy_version for group in groups]
        return {
            **clock.values(available_s=workers_s, has_tagger=has_tagger),
            **pool_values(parts.pools, step_s, clock.failed),
            **parts.fleet.values(),
            Key.POLICY_AGE_MEAN: float(np.mean(ages)),
            Key.POLICY_AGE_MAX: float(max(ages)),
            Key.TIME_STEP: step_s,
            Key.PERF_IMAGES: sum(group.receipt.images for group in groups) / step_s,
        }

    async def _record(self, groups: list[ScoredGroup], batch: AdvantageBatch, values: Mapping[str, Value]) -> None:
        clip = self.config.objective.reward_weight_clip
        r = None if clip is None else to_reward_weight(batch.advantages, clip)
        scores = np.stack([group.table.scores for group in groups])
        self.log({**values, **batch_values(self.config.rewards, scores, batch, r)})
        if self.step % self.config.monitor.sample_every == 0 or self.step == self.config.train.steps:
            await self._sheet(groups[0], batch.advantages[0], None if r is None else r[0])

    async def _sheet(self, scored: ScoredGroup, advantages: F64, r: F64 | None) -> None:
        group: RolloutGroup = await within(
            scored.group_ref, self.config.rollout.deadline_s, "pixels of a sample sheet", "rollout.deadline_s"
        )
        path = sheet_path(self.run_dir, self.step, group.ordinal)
        of_group = (scored.task, group, scored.table)
        rows = write_sample_sheet(path, *of_group, per_member(advantages), None if r is None else per_member(r))
        maps = write_maps_sheet(path, *of_group, advantages, self.config.map_cell_px)
        self.monitor.log_samples(self.step, path, rows, maps)


@dataclass(frozen=True, eq=False)
class _Parts:
    """The objects that a run's event loop works with."""

    alarm: Alarm
    background: Tasks
    fleet: Fleet
    lanes: Sampling
    pools: list[RewardPool]
    queues: list[Pool[Any]]
    """Of every role."""
    sync: WeightSync
    versions: Versions
    evaluator: Evaluator
    reference: "asyncio.Future[str | None]"
    """Digest of the learner's reference adapter."""
    scaler: Autoscaler | None = None

    def rescale(self, idle_learner: float, idle_rollout: float) -> None:
        """Where the recipe asks for it."""
        role = self.fleet[ROLLOUT]
        if self.scaler is not None:
            wanted = self.scaler.after_step(role.wanted, idle_learner, idle_rollout)
            if wanted != role.wanted:
                print(self.fleet.resize(ROLLOUT, wanted), flush=True)

    def close(self) -> None:
        self.background.close()
        for queue in self.queues:
            queue.close()
        self.fleet.close()


async def _all(tasks: list[asyncio.Task[ScoredGroup]], later: list[asyncio.Task[ScoredGroup]]) -> list[ScoredGroup]:
    """Wait for `tasks`; a failure in `later` is raised at once, not only when its step comes."""
    waiting = {*tasks}
    while waiting:
        done, _ = await asyncio.wait({*waiting, *(t for t in later if not t.done())}, return_when="FIRST_COMPLETED")
        for task in done:
            task.result()
        waiting -= done
    return [task.result() for task in tasks]
