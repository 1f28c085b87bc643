"""The queue of one kind of server: batches, bounded retries, no invented answers, whoever its members are.

Who pays for a failure:

    the member died or hung        it is replaced; the groups it worked on lose an attempt, as one may have killed it
    it failed, others did not try  the group loses an attempt and goes to another member; the member rests
    it failed before, others work  the member alone: it rests longer, then it is replaced
    several members failed         the group, whose failure it is
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ray.exceptions import ObjectLostError, RayError

from actors.deadline import cause, reason
from actors.member import Deadline, Member, MemberLost
from actors.role import Role
from actors.tasks import Tasks
from rewards.base import ServerError


class Timed(Protocol):
    """A server's answer for one group."""

    @property
    def seconds(self) -> float: ...


class Retries(Protocol):
    """A server's section."""

    @property
    def retries(self) -> int: ...

    @property
    def deadline_s(self) -> float: ...


Answer = TypeVar("Answer", bound=Timed)


class GroupFailed(RuntimeError):
    """A server failed permanently on one group; the group is dropped.

    Attributes:
        pool: the pool of the failed servers.
    """

    def __init__(self, pool: "Pool[Any]", ordinal: int, attempts: int, error: BaseException) -> None:
        super().__init__(f"{pool.title} failed {attempts} times on group {ordinal}: {reason(error)}")
        self.pool = pool


class CarrierLost(RuntimeError):
    """The node that held a group's pixels is gone; the group is sampled again, as the same."""

    def __init__(self, ordinal: int, error: BaseException) -> None:
        super().__init__(f"group {ordinal}: its pixels are lost: {reason(error)}")


@dataclass(eq=False)
class Request(Generic[Answer]):
    """One group waiting for one server."""

    ordinal: int
    carriers: tuple[Any, ...]
    result: "asyncio.Future[Answer]"
    queued_at: float = field(default_factory=time.perf_counter)
    attempts: int = 0
    """Those that count against the group."""
    failed_on: set[str] = field(default_factory=set)
    """Members that failed on it, whoever pays."""
    alone: bool = False
    """After its first failure it shares no call, so that it can harm no neighbour twice."""


class Pool(Generic[Answer]):
    """Queueing, batching, retries and timing for any kind of server; subclasses make and check its calls.

    Args:
        name: the server's name.
        config: `retries` and `deadline_s` are read.
        batch: maximum number of groups per call.
        role: the servers.
    """

    error: ClassVar[type[ServerError]]
    doing: ClassVar[str]
    setting: ClassVar[str] = "deadline_s of {title}"
    """The key of the deadline, in messages."""

    def __init__(self, name: str, config: Retries, batch: int, role: Role) -> None:
        self.name = name
        self.title = f"{self.error.kind} '{name}'"
        self.config = config
        self.role = role
        self.busy_s = 0.0
        self.waited_s = 0.0
        self.answered = 0
        self.failed_in_a_row = 0
        self._batch = batch
        self._waiting: deque[Request[Answer]] = deque()
        self._changed = asyncio.Event()
        self._tasks = Tasks(role.alarm)
        role.listen(self._changed.set)
        self._tasks.start(self._dispatch())

    @property
    def queued(self) -> int:
        """Groups that no member works on yet."""
        return len(self._waiting)

    def _send(self, handle: Any, batch: Sequence[Request[Answer]]) -> Awaitable[list[Answer]]:
        """Start one call."""
        raise NotImplementedError

    def _check(self, batch: Sequence[Request[Answer]], answers: Sequence[Answer]) -> None:
        """Raise `ServerError` if the answers do not match the batch."""
        if not isinstance(answers, list) or len(answers) != len(batch):
            got = len(answers) if isinstance(answers, list) else type(answers).__name__
            raise self.error(self.name, f"expected {len(batch)} answers, one per group, got {got}")

    async def _ask(self, ordinal: int, *carriers: Any) -> Answer:
        """Wait for the answer for one group; raises `GroupFailed` after the configured retries."""
        request: Request[Answer] = Request(ordinal, carriers, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._changed.set()
        try:
            return await request.result
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    async def _dispatch(self) -> None:
        """Give waiting groups to free members, for as long as the run lasts."""
        while True:
            while (match := self._match()) is not None:
                member, batch = match
                member.calls += 1
                for request in batch:
                    self._waiting.remove(request)
                self._tasks.start(self._call(member, batch))
            self._changed.clear()
            await self._changed.wait()

    def _match(self) -> tuple[Member, list[Request[Answer]]] | None:
        if not self._waiting or self.role.free() is None:
            return None
        for request in self._waiting:
            member = self.role.free(avoid=request.failed_on)
            if member is None:
                continue
            if request.alone:
                return member, [request]
            fresh = (r for r in self._waiting if not r.alone and r is not request)
            return member, [request, *islice(fresh, self._batch - 1)]
        return None

    async def _call(self, member: Member, batch: list[Request[Answer]]) -> None:
        started = time.perf_counter()
        deadline = Deadline(self.config.deadline_s, self.doing, self.setting.format(title=self.title))
        try:
            answers = await member.call(lambda handle: self._send(handle, batch), deadline)
            self._check(batch, answers)
        except MemberLost as loss:
            self._lost(member, batch, loss)
        except (RayError, ServerError) as error:
            if isinstance(cause(error), ObjectLostError):
                self._carriers_lost(batch, error)
            else:
                self._failed(member, batch, error)
        else:
            self._answered(batch, answers, started)
            self.role.praise(member)
        finally:
            self.role.release(member)

    def _answered(self, batch: Sequence[Request[Answer]], answers: Sequence[Answer], started: float) -> None:
        self.failed_in_a_row = 0
        self.busy_s += sum(answer.seconds for answer in answers)
        for request, answer in zip(batch, answers, strict=True):
            self.waited_s += started - request.queued_at
            self.answered += 1
            if not request.result.done():
                request.result.set_result(answer)

    def _lost(self, member: Member, batch: Sequence[Request[Answer]], loss: MemberLost) -> None:
        """Groups that were still queued on the member pay nothing."""
        self.role.lose(member, loss.why)
        if loss.at_work:
            self.failed_in_a_row += 1
        for request in batch:
            request.attempts += loss.at_work
            self._again(request, loss)

    def _carriers_lost(self, batch: Sequence[Request[Answer]], error: BaseException) -> None:
        """Nobody's failure. With several groups in the call each tries again alone, to tell which of them is lost."""
        for request in batch:
            if request.result.done():
                continue
            if len(batch) == 1:
                request.result.set_exception(CarrierLost(request.ordinal, error))
            else:
                self._again(request, error)

    def _failed(self, member: Member, batch: Sequence[Request[Answer]], error: RayError | ServerError) -> None:
        """Only groups at fault lose an attempt, so a group is not dropped because of its neighbours in the call."""
        self.failed_in_a_row += 1
        at_fault = groups_at_fault(error, [request.ordinal for request in batch])
        elsewhere = [r for r in batch if r.ordinal in at_fault and r.failed_on - {member.name}]
        in_good_standing = member.strikes == 0
        if not elsewhere:
            self.role.blame(member, reason(error))
        for request in batch:
            if request.ordinal in at_fault:
                request.attempts += in_good_standing or request in elsewhere
                request.failed_on.add(member.name)
            self._again(request, error)

    def _again(self, request: Request[Answer], error: BaseException) -> None:
        if request.result.done():
            return
        request.alone = True
        if request.attempts <= self.config.retries:
            self._waiting.append(request)
            self._changed.set()
        else:
            request.result.set_exception(GroupFailed(self, request.ordinal, request.attempts, error))

    def close(self) -> None:
        """Stop working."""
        self._tasks.close()


def groups_at_fault(error: BaseException, ordinals: Sequence[int]) -> set[int]:
    """The ordinals that a call's error names; all of them if it names none, so that retries stay bounded."""
    inner = cause(error)
    named = set(inner.ordinals) & set(ordinals) if isinstance(inner, ServerError) else set()
    return named or set(ordinals)


def idle_share(busy_s: float, available_s: float) -> float:
    """Work that began before a step counts towards the step in which it ended, hence the clamp."""
    return min(1.0, max(0.0, 1.0 - busy_s / available_s))
