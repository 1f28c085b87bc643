"""All replicas of one server behind one queue: one caller per replica, bounded retries, no invented answers."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ray.exceptions import RayError

from actors.deadline import DeadlineError, cause, reason, within
from rewards.base import ServerError
from rl.config.server import ServerSection


class Timed(Protocol):
    """A server's answer for one group."""

    @property
    def seconds(self) -> float: ...


Answer = TypeVar("Answer", bound=Timed)


class GroupFailed(RuntimeError):
    """A server failed permanently on one group; the group is dropped.

    Attributes:
        pool: the pool of the failed servers.
    """

    def __init__(self, pool: "Pool[Any]", ordinal: int, attempts: int, error: BaseException) -> None:
        super().__init__(f"{pool.title} failed {attempts} times on group {ordinal}: {reason(error)}")
        self.pool = pool


@dataclass
class Request(Generic[Answer]):
    """One group waiting for one server."""

    ordinal: int
    carriers: tuple[Any, ...]
    result: "asyncio.Future[Answer]"
    queued_at: float = field(default_factory=time.perf_counter)
    attempts: int = 0


class Pool(Generic[Answer]):
    """Queueing, batching, retries and timing for any kind of server; subclasses make and check its calls.

    Args:
        name: the server's name.
        config: `retries` and `deadline_s` are read.
        batch: maximum number of groups per call.
        servers: one handle per replica.
    """

    error: ClassVar[type[ServerError]]
    doing: ClassVar[str]

    def __init__(self, name: str, config: ServerSection, batch: int, servers: Sequence[Any]) -> None:
        self.name = name
        self.title = f"{self.error.kind} '{name}'"
        self.config = config
        self.busy_s = 0.0
        self.waited_s = 0.0
        self.answered = 0
        self.failed_in_a_row = 0
        self._batch = batch
        self._queue: asyncio.Queue[Request[Answer]] = asyncio.Queue()
        self._callers = [asyncio.create_task(self._calls(server)) for server in servers]

    def _send(self, server: Any, batch: Sequence[Request[Answer]]) -> Awaitable[list[Answer]]:
        """Start one call."""
        raise NotImplementedError

    def _check(self, batch: Sequence[Request[Answer]], answers: Sequence[Answer]) -> None:
        """Raise `ServerError` if the answers do not match the batch."""
        if len(answers) != len(batch):
            raise self.error(self.name, f"expected {len(batch)} answers, one per group, got {len(answers)}")

    async def _ask(self, ordinal: int, *carriers: Any) -> Answer:
        """Wait for the answer for one group; raises `GroupFailed` after the configured retries."""
        request: Request[Answer] = Request(ordinal, carriers, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(request)
        return await request.result

    async def _calls(self, server: Any) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._call(server, batch)

    async def _call(self, server: Any, batch: list[Request[Answer]]) -> None:
        started = time.perf_counter()
        call = self._send(server, batch)
        try:
            answers = await within(call, self.config.deadline_s, self.doing, f"deadline_s of {self.title}")
            self._check(batch, answers)
        except (RayError, DeadlineError, ServerError) as error:
            self._retry_or_fail(batch, error)
            return
        self.failed_in_a_row = 0
        self.busy_s += sum(answer.seconds for answer in answers)
        for request, answer in zip(batch, answers, strict=True):
            self.waited_s += started - request.queued_at
            self.answered += 1
            if not request.result.done():
                request.result.set_result(answer)

    def _retry_or_fail(self, batch: list[Request[Answer]], error: RayError | DeadlineError | ServerError) -> None:
        """Only groups at fault lose an attempt, so a group is not dropped because of its neighbours in the call."""
        self.failed_in_a_row += 1
        at_fault = groups_at_fault(error, [request.ordinal for request in batch])
        for request in batch:
            request.attempts += request.ordinal in at_fault
            if request.attempts <= self.config.retries:
                self._queue.put_nowait(request)
            elif not request.result.done():
                request.result.set_exception(GroupFailed(self, request.ordinal, request.attempts, error))

    def close(self) -> None:
        """Stop the callers."""
        for caller in self._callers:
            caller.cancel()


def groups_at_fault(error: RayError | DeadlineError | ServerError, ordinals: Sequence[int]) -> set[int]:
    """The ordinals that a call's error names; all of them if it names none, so that retries stay bounded."""
    inner = cause(error)
    named = set(inner.ordinals) & set(ordinals) if isinstance(inner, ServerError) else set()
    return named or set(ordinals)


def idle_share(busy_s: float, available_s: float) -> float:
    """Work that began before a step counts towards the step in which it ended, hence the clamp."""
    return min(1.0, max(0.0, 1.0 - busy_s / available_s))
