"""What went wrong inside an actor, without Ray's wrapping."""

from ray.exceptions import RayError, RayTaskError

from rewards.base import ServerError


def cause(error: BaseException) -> BaseException:
    """What the actor raised; the error itself where it was not raised in an actor."""
    return error.cause if isinstance(error, RayTaskError) else error


def reason(error: BaseException) -> str:
    """One line; Ray's own errors put the point into the last one, ours into the first."""
    inner = cause(error)
    text = inner.reason if isinstance(inner, ServerError) else str(inner)
    lines = text.strip().splitlines() or [type(inner).__name__]
    return lines[-1] if isinstance(inner, RayError) else lines[0]
