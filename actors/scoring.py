"""Groups in, reward tables out."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from actors.pool import Pool, Request, idle_share
from actors.role import Role
from rewards.base import RewardError
from rl.config.reward import RewardSection
from rl.metrics import Key, Value
from rl.types import RewardColumn, RewardTable


class RewardPool(Pool[RewardColumn]):
    """All replicas of one reward behind one queue."""

    error = RewardError
    doing = "scoring"

    def __init__(self, config: RewardSection, role: Role) -> None:
        super().__init__(config.name, config, config.batch_groups, role)

    async def score(self, ordinal: int, task: Any, group: Any) -> RewardColumn:
        """Wait for this reward's column; raises `GroupFailed` after the configured retries."""
        return await self._ask(ordinal, task, group)

    def _send(self, handle: Any, batch: Sequence[Request[RewardColumn]]) -> Awaitable[list[RewardColumn]]:
        tasks, groups = zip(*(request.carriers for request in batch), strict=True)
        call: Awaitable[list[RewardColumn]] = handle.score.remote(len(batch), *tasks, *groups)
        return call

    def _check(self, batch: Sequence[Request[RewardColumn]], answers: Sequence[RewardColumn]) -> None:
        """Scores belong to groups, not to positions."""
        super()._check(batch, answers)
        expected = [request.ordinal for request in batch]
        got = [getattr(answer, "ordinal", type(answer).__name__) for answer in answers]
        if got != expected:
            raise self.error(self.name, f"expected columns of groups {expected}, got {got}")


async def score_group(pools: Sequence[RewardPool], ordinal: int, task: Any, group: Any) -> RewardTable:
    """Every reward on one group, in parallel. The first failure is raised once all have been awaited."""
    results = await asyncio.gather(*(p.score(ordinal, task, group) for p in pools), return_exceptions=True)
    columns: list[RewardColumn] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        columns.append(result)
    return RewardTable.of(ordinal, columns)


def pool_values(pools: Sequence[RewardPool], step_s: float, failed: Mapping[Any, int]) -> dict[str, Value]:
    """Under the keys of the metrics table; reads and resets all pools' clocks. `failed` counts dropped groups."""
    answered = sum(pool.answered for pool in pools)
    waited = sum(pool.waited_s for pool in pools)
    busy = sum(pool.busy_s for pool in pools)
    replicas = sum(len(pool.role.ready) for pool in pools)
    for pool in pools:
        pool.answered, pool.waited_s, pool.busy_s = 0, 0.0, 0.0
    values: dict[str, Value] = {Key.REWARD_FAILED.of(pool.name): float(failed.get(pool, 0)) for pool in pools}
    values[Key.IDLE_REWARD] = idle_share(busy, step_s * max(1, replicas))
    if answered:
        values[Key.REWARD_QUEUE_WAIT] = waited / answered
    return values
