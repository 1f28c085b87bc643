"""Groups in, reward tables out: one queue per reward, one lane per replica, bounded retries, never a made-up number."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.exceptions import RayError

from actors.deadline import DeadlineError, within
from actors.failures import cause, reason
from rewards.base import RewardError
from rl.config.reward import RewardConfig
from rl.types import RewardColumn, RewardTable


class ScoringFailed(RuntimeError):
    """A reward failed for good on one group; the group is dropped."""

    def __init__(self, reward: str, ordinal: int, attempts: int, error: BaseException) -> None:
        super().__init__(f"reward '{reward}' failed {attempts} times on group {ordinal}: {reason(error)}")
        self.reward = reward


@dataclass
class Request:
    """One group waiting for one reward."""

    ordinal: int
    task: Any
    group: Any
    result: "asyncio.Future[RewardColumn]"
    queued_at: float = field(default_factory=time.perf_counter)
    attempts: int = 0


class RewardPool:
    """All replicas of one reward behind one queue."""

    def __init__(self, config: RewardConfig, servers: Sequence[Any]) -> None:
        self.config = config
        self.busy_s = 0.0
        self.waited_s = 0.0
        self.scored = 0
        self.failed_in_a_row = 0
        self._queue: asyncio.Queue[Request] = asyncio.Queue()
        self._lanes = [asyncio.create_task(self._lane(server)) for server in servers]

    async def score(self, ordinal: int, task: Any, group: Any) -> RewardColumn:
        """Wait for this reward's column; raises `ScoringFailed` after the configured retries."""
        request = Request(ordinal, task, group, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(request)
        return await request.result

    async def _lane(self, server: Any) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.config.batch_groups and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._call(server, batch)

    async def _call(self, server: Any, batch: list[Request]) -> None:
        started = time.perf_counter()
        call = server.score.remote(len(batch), *(r.task for r in batch), *(r.group for r in batch))
        setting = f"deadline_s of reward '{self.config.name}'"
        try:
            columns: list[RewardColumn] = await within(call, self.config.deadline_s, "scoring", setting)
        except (RayError, DeadlineError) as error:
            self._retry_or_fail(batch, error)
            return
        self.failed_in_a_row = 0
        self.busy_s += sum(column.seconds for column in columns)
        for request, column in zip(batch, columns, strict=True):
            self.waited_s += started - request.queued_at
            self.scored += 1
            if not request.result.done():
                request.result.set_result(column)

    def _retry_or_fail(self, batch: list[Request], error: RayError | DeadlineError) -> None:
        """Only groups at fault lose an attempt: a group whose neighbour cannot be scored is not dropped with it."""
        self.failed_in_a_row += 1
        at_fault = groups_at_fault(error, [request.ordinal for request in batch])
        for request in batch:
            request.attempts += request.ordinal in at_fault
            if request.attempts <= self.config.retries:
                self._queue.put_nowait(request)
            elif not request.result.done():
                failure = ScoringFailed(self.config.name, request.ordinal, request.attempts, error)
                request.result.set_exception(failure)

    def close(self) -> None:
        """Stop the lanes."""
        for lane in self._lanes:
            lane.cancel()


async def score_group(pools: Sequence[RewardPool], ordinal: int, task: Any, group: Any) -> RewardTable:
    """Every reward on one group, in parallel; the first failure wins and the others are awaited, not lost."""
    results = await asyncio.gather(*(p.score(ordinal, task, group) for p in pools), return_exceptions=True)
    columns: list[RewardColumn] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        columns.append(result)
    return RewardTable(
        ordinal,
        tuple(column.name for column in columns),
        np.stack([column.scores for column in columns], axis=1),
        tuple(column.seconds for column in columns),
    )


def groups_at_fault(error: RayError | DeadlineError, ordinals: Sequence[int]) -> set[int]:
    """The ordinals of a call that its error names; all of them where it names none, so that retries are bounded."""
    inner = cause(error)
    named = set(inner.ordinals) & set(ordinals) if isinstance(inner, RewardError) else set()
    return named or set(ordinals)
