"""Sampling lanes: a group slot in, a scored group out. One coroutine per slot, one queue of free workers."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.deadline import within
from actors.ledger import Ledger
from actors.pool import GroupFailed, Pool, idle_share
from actors.scoring import RewardPool, score_group
from actors.tagging import TaggerPool
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.metrics import Key, Value
from rl.seeding import member_seeds
from rl.types import RewardTable, RolloutReceipt, SRTask

IN_FLIGHT = 2
"""Calls queued per worker, so that it never waits for the driver between two groups."""


@dataclass(frozen=True, eq=False)
class ScoredGroup:
    """Everything that training needs from a group; its pixels and latents are held by reference."""

    task: SRTask
    task_ref: Any
    group_ref: Any
    receipt: RolloutReceipt
    table: RewardTable


@dataclass
class LaneClock:
    """What the sampling lanes did since the last step was logged."""

    tag_s: float = 0.0
    sample_s: float = 0.0
    score_s: float = 0.0
    dropped: int = 0
    failed: Counter[Pool[Any]] = field(default_factory=Counter)
    """Pool -> groups dropped because of it."""

    def values(self, *, available_s: float, has_tagger: bool) -> dict[str, Value]:
        """Under the keys of the metrics table; `available_s` is the total time of all workers."""
        tags: dict[str, Value] = {}
        if has_tagger:
            failed = sum(count for pool, count in self.failed.items() if isinstance(pool, TaggerPool))
            tags = {Key.TIME_TAG: self.tag_s, Key.TAGGER_FAILED: float(failed)}
        return {
            Key.TIME_SAMPLE: self.sample_s,
            Key.TIME_SCORE: self.score_s,
            Key.GROUP_DROPPED: float(self.dropped),
            Key.IDLE_ROLLOUT: idle_share(self.sample_s, available_s),
            **tags,
        }


class Versions:
    """The newest version that every live worker has echoed; lanes wait here for the age bound."""

    def __init__(self) -> None:
        self.current = -1
        self._changed = asyncio.Condition()

    async def publish(self, version: int) -> None:
        async with self._changed:
            self.current = version
            self._changed.notify_all()

    async def at_least(self, version: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.current >= version)


class Sampling:
    """Turns slots into scored groups; if a tagger or reward fails, the group is dropped and its slot gets a new one."""

    def __init__(
        self,
        config: RunConfig,
        source: TaskSource,
        ledger: Ledger,
        pools: list[RewardPool],
        workers: tuple[Any, ...],
        versions: Versions,
        tagger: TaggerPool | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._ledger = ledger
        self._pools = pools
        self._versions = versions
        self._tagger = tagger
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for worker in workers * IN_FLIGHT:
            self._free.put_nowait(worker)
        self.clock = LaneClock()

    async def fill(self, step: int) -> ScoredGroup:
        """One group for `step`, sampled with version >= step - max_policy_lag."""
        await self._versions.at_least(step - self._config.train.max_policy_lag)
        while True:
            ordinal = self._ledger.issue()
            try:
                return await self._sample_and_score(ordinal)
            except GroupFailed as failure:
                self._ledger.drop(ordinal)
                self.clock.dropped += 1
                self.clock.failed[failure.pool] += 1
                self._give_up_on_a_dead_server(failure)

    def _give_up_on_a_dead_server(self, failure: GroupFailed) -> None:
        pool = failure.pool
        if pool.failed_in_a_row > self._config.train.groups_per_step * (pool.config.retries + 1):
            raise RuntimeError(f"{failure}; {pool.failed_in_a_row} calls failed in a row, the run stops") from failure

    async def _sample_and_score(self, ordinal: int) -> ScoredGroup:
        task, tag_s = self._source.task(ordinal), 0.0
        if self._tagger is not None:
            task, tag_s = await self._tagger.prompted(task)
        task_ref = ray.put(task)
        seeds = member_seeds(self._config.seed, ordinal, self._config.rollout.group_size)
        receipt, group_ref = await self.rollout(task_ref, seeds)
        table = await score_group(self._pools, ordinal, task_ref, group_ref)
        self.clock.tag_s += tag_s
        self.clock.sample_s += receipt.sample_s
        self.clock.score_s += sum(table.seconds)
        return ScoredGroup(task, task_ref, group_ref, receipt, table)

    async def rollout(
        self, task_ref: Any, seeds: tuple[int, ...], *, training: bool = True
    ) -> tuple[RolloutReceipt, Any]:
        """Sample on the first free worker."""
        worker = await self._free.get()
        try:
            call = worker.rollout.options(num_returns=2)
            receipt_ref, group_ref = call.remote(task_ref, seeds, training=training)
            receipt: RolloutReceipt = await within(
                receipt_ref, self._config.rollout.deadline_s, "rollout of one group", "rollout.deadline_s"
            )
        finally:
            self._free.put_nowait(worker)
        return receipt, group_ref
