"""Background work of the driver that cannot die unseen: an error that nobody expected ends the run."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Alarm:
    """The first error that ends the run, wherever it came up."""

    def __init__(self) -> None:
        self._rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ring(self, error: BaseException) -> None:
        """Later errors are consequences of the first."""
        if not self._rung.done():
            self._rung.set_exception(error)

    async def guard(self, work: Awaitable[T]) -> T:
        """The result of `work`; it is cancelled when the alarm rings, whose error is raised instead."""
        task = asyncio.ensure_future(work)
        try:
            either: set[asyncio.Future[Any]] = {task, self._rung}
            await asyncio.wait(either, return_when="FIRST_COMPLETED")
            if self._rung.done() and not task.done():
                task.cancel()
                await asyncio.wait({task})
                self._rung.result()
            return await task
        finally:
            task.cancel()


class Tasks:
    """A set of coroutines that run beside others."""

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._alarm.ring(error)

    def close(self) -> None:
        for task in [*self._running]:
            task.cancel()
