"""Every wait of the driver ends: with an answer, the actor's error, or a `DeadlineError` that says what timed out."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from rewards.base import ServerError

T = TypeVar("T")


class DeadlineError(RuntimeError):
    """An actor did not answer in time.

    Attributes:
        what: the call that timed out.
        seconds: the deadline.
        setting: the configuration key of the deadline.
    """

    def __init__(self, what: str, seconds: float, setting: str) -> None:
        super().__init__(what, seconds, setting)
        self.what, self.seconds, self.setting = what, seconds, setting

    def __str__(self) -> str:
        return (
            f"{self.what}: no answer within {self.seconds:g} s; if the process is alive and only slow, raise "
            f"{self.setting}, else see its output above"
        )


async def within(call: Awaitable[T], seconds: float, what: str, setting: str) -> T:
    """The answer to one call of an actor.

    The actor's own errors pass through unchanged, including its TimeoutError.

    Raises:
        DeadlineError: no answer came in time.
    """
    answer = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({answer}, timeout=seconds)
        if not done:
            raise DeadlineError(what, seconds, setting)
        return answer.result()
    finally:
        answer.cancel()


async def all_within(calls: Iterable[Awaitable[T]], seconds: float, what: str, setting: str) -> list[T]:
    """The answers to several calls, in order, under one deadline; the first error ends the wait."""
    return await within(asyncio.gather(*calls), seconds, what, setting)


def get_within(refs: Any, seconds: float, what: str, setting: str) -> Any:
    """`ray.get` of one reference or a list, for code outside the event loop."""
    import ray

    try:
        return ray.get(refs, timeout=seconds)
    except ray.exceptions.GetTimeoutError as error:
        raise DeadlineError(what, seconds, setting) from error


def cause(error: BaseException) -> BaseException:
    """What the actor raised, without Ray's wrapper; the error itself if it was not raised in an actor."""
    from ray.exceptions import RayTaskError

    return error.cause if isinstance(error, RayTaskError) else error


def reason(error: BaseException) -> str:
    """One line; Ray's own errors have the essential part in the last line, ours in the first."""
    from ray.exceptions import RayError

    inner = cause(error)
    text = inner.reason if isinstance(inner, ServerError) else str(inner)
    lines = text.strip().splitlines() or [type(inner).__name__]
    return lines[-1] if isinstance(inner, RayError) else lines[0]
