"""One process of a role, and calls to it that end: with an answer, with its error, or with its loss.

A call is sent at once, so that the process finds its next work without a round trip to the driver; its deadline counts
from its turn, so a slow call costs the one behind it nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from actors.deadline import DeadlineError

T = TypeVar("T")
State = Literal["joining", "ready", "leaving", "lost", "left"]
"""joining: loads its model and adapter. ready: may be given work. leaving: finishes its calls, then left. lost: died,
hung, or failed too often."""


@dataclass(frozen=True)
class Deadline:
    """What is waited for, how long, and the configuration key that says so."""

    seconds: float
    what: str
    setting: str


class MemberLost(RuntimeError):
    """The process that was asked died, hung or was taken away; nothing is known about its work.

    Attributes:
        member: its name.
        at_work: whether it was this call's turn, so that the call may be what killed it.
        unfit: its own constructor failed, so another of its kind would fail as well.
    """

    def __init__(self, member: str, why: str, *, at_work: bool, unfit: bool = False) -> None:
        super().__init__(member, why)
        self.member, self.why, self.at_work, self.unfit = member, why, at_work, unfit

    def __str__(self) -> str:
        return f"{self.member} is lost: {self.why}"


class Member:
    """One process.

    Args:
        name: the role's name and a serial number, never used twice in a run.
        handle: its Ray actor handle.
        concurrency: calls that the process answers at the same time.
    """

    def __init__(self, name: str, handle: Any, concurrency: int = 1) -> None:
        self.name = name
        self.handle = handle
        self.state: State = "joining"
        self.calls = 0
        """Slots taken; a role counts them."""
        self.answered = 0
        self.version: int | None = None
        """Of the adapter that it echoed last."""
        self.strikes = 0
        """Failures in a row while others succeeded."""
        self.rests_until = 0.0
        """Time of the event loop until which it gets no work."""
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        self._turns = asyncio.Semaphore(concurrency)
        self._gone: asyncio.Future[str] = loop.create_future()

    async def call(self, send: Callable[[Any], Awaitable[T]], deadline: Deadline) -> T:
        """Send a call to the process and wait for its answer; the process's own errors pass through unchanged.

        Raises:
            MemberLost: the process died or was dismissed, or no answer came within the deadline after the call's turn
                had come. The caller tells the role, which dismisses it.
        """
        from ray.exceptions import RayActorError

        answer = asyncio.ensure_future(send(self.handle))
        try:
            async with self._turns:
                at_work = not self._gone.done()
                either: set[asyncio.Future[Any]] = {answer, self._gone}
                await asyncio.wait(either, timeout=deadline.seconds, return_when="FIRST_COMPLETED")
                if answer.done():
                    return answer.result()
                if self._gone.done():
                    raise MemberLost(self.name, self._gone.result(), at_work=at_work)
                late = DeadlineError(deadline.what, deadline.seconds, deadline.setting)
                raise MemberLost(self.name, str(late), at_work=True)
        except RayActorError as error:
            unfit = error.actor_init_failed
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise MemberLost(self.name, lines[-1 if unfit else 0], at_work=at_work, unfit=unfit) from error
        finally:
            answer.cancel()

    def leave(self, state: State, why: str) -> None:
        """End every call that still waits for it; `state` is lost or left."""
        self.state = state
        if not self._gone.done():
            self._gone.set_result(why)
