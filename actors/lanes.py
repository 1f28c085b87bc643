"""Sampling lanes: a slot of a step in, a scored group out. One coroutine per slot."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.ledger import Ledger
from actors.pool import CarrierLost, GroupFailed, Pool, Request, idle_share
from actors.role import Role
from actors.scoring import RewardPool, score_group
from actors.tagging import TaggerPool
from rewards.base import ServerError
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.metrics import Key, Value
from rl.seeding import member_seeds
from rl.types import RewardTable, RolloutReceipt, SRTask


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
    resampled: int = 0
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
            Key.GROUP_RESAMPLED: float(self.resampled),
            Key.IDLE_ROLLOUT: idle_share(self.sample_s, available_s),
            **tags,
        }


class Versions:
    """The newest version that every ready worker has echoed; lanes wait here for the age bound."""

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


class SamplingError(ServerError):
    """A worker could not sample."""

    kind = "rollout"


@dataclass(frozen=True, eq=False)
class Sampled:
    """A worker's answer: the receipt, and the group by reference."""

    receipt: RolloutReceipt
    group_ref: Any

    @property
    def seconds(self) -> float:
        return self.receipt.sample_s


class RolloutPool(Pool[Sampled]):
    """All rollout workers behind one queue; a worker samples one group at a time."""

    error = SamplingError
    doing = "rollout of one group"
    setting = "rollout.deadline_s"

    def __init__(self, config: RunConfig, role: Role) -> None:
        super().__init__("workers", config.rollout, 1, role)

    async def sample(self, ordinal: int, task_ref: Any, seeds: tuple[int, ...], *, training: bool = True) -> Sampled:
        """One group; raises `GroupFailed` after the configured retries."""
        return await self._ask(ordinal, task_ref, seeds, training)

    def _send(self, handle: Any, batch: Sequence[Request[Sampled]]) -> Awaitable[list[Sampled]]:
        ((task_ref, seeds, training),) = (request.carriers for request in batch)
        receipt_ref, group_ref = handle.rollout.options(num_returns=2).remote(task_ref, seeds, training=training)
        return _answered(receipt_ref, group_ref)


async def _answered(receipt_ref: Any, group_ref: Any) -> list[Sampled]:
    receipt = await receipt_ref
    if not isinstance(receipt, RolloutReceipt):
        raise SamplingError("workers", f"expected a receipt, got {type(receipt).__name__}")
    return [Sampled(receipt, group_ref)]


class Sampling:
    """Turns slots into scored groups; if a tagger, worker or reward fails on one, its slot gets another attempt."""

    def __init__(
        self,
        config: RunConfig,
        source: TaskSource,
        ledger: Ledger,
        workers: RolloutPool,
        pools: list[RewardPool],
        versions: Versions,
        tagger: TaggerPool | None = None,
    ) -> None:
        self.clock = LaneClock()
        self.workers = workers
        self._config = config
        self._source = source
        self.ledger = ledger
        self._pools = pools
        self._versions = versions
        self._tagger = tagger

    async def fill(self, step: int, slot: int) -> ScoredGroup:
        """One group for `slot` of `step`, sampled with version >= step - max_policy_lag."""
        await self._versions.at_least(step - self._config.train.max_policy_lag)
        while True:
            ordinal = self.ledger.issue(step, slot)
            try:
                return await self._tag_sample_and_score(ordinal)
            except GroupFailed as failure:
                self.ledger.drop(ordinal)
                self.clock.dropped += 1
                self.clock.failed[failure.pool] += 1
                self._give_up_on_a_dead_server(failure)

    def _give_up_on_a_dead_server(self, failure: GroupFailed) -> None:
        pool = failure.pool
        if pool.failed_in_a_row > self._config.train.groups_per_step * (pool.config.retries + 1):
            raise RuntimeError(f"{failure}; {pool.failed_in_a_row} calls failed in a row, the run stops") from failure

    async def _tag_sample_and_score(self, ordinal: int) -> ScoredGroup:
        task, tag_s = self._source.task(ordinal), 0.0
        if self._tagger is not None:
            task, tag_s = await self._tagger.prompted(task)
        task_ref = ray.put(task)
        seeds = member_seeds(self._config.seed, ordinal, self._config.rollout.group_size)
        sampled, table = await self.sample_and_score(ordinal, task_ref, seeds)
        self.clock.tag_s += tag_s
        self.clock.sample_s += sampled.seconds
        self.clock.score_s += sum(table.seconds)
        return ScoredGroup(task, task_ref, sampled.group_ref, sampled.receipt, table)

    async def sample_and_score(
        self, ordinal: int, task_ref: Any, seeds: tuple[int, ...], *, training: bool = True
    ) -> tuple[Sampled, RewardTable]:
        """Sample until the pixels live long enough to be scored: the same group again if their node dies in between."""
        while True:
            sampled = await self.workers.sample(ordinal, task_ref, seeds, training=training)
            try:
                return sampled, await score_group(self._pools, ordinal, task_ref, sampled.group_ref)
            except CarrierLost:
                self.clock.resampled += 1
