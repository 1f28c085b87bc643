"""Delivered or not sampled: a push is done when every live worker has echoed version and digest."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.learner_worker import Published
from rl.types import Echo


class PushError(RuntimeError):
    """A snapshot did not arrive whole, or arrived without effect."""


@dataclass(frozen=True)
class PushReport:
    """Seconds of one push; load and verify are the slowest worker's."""

    version: int
    digest: str
    canary: float
    size_bytes: int
    gather_s: float
    put_s: float
    load_s: float
    verify_s: float
    total_s: float


class WeightSync:
    """Pushes snapshots and remembers what the last one did, for the canary."""

    def __init__(self, learner: Any, workers: Sequence[Any], deadline_s: float) -> None:
        self._learner = learner
        self._workers = workers
        self._deadline_s = deadline_s
        self._last: PushReport | None = None

    async def push(self, *, ema: bool = False, must_change: bool = False) -> PushReport:
        """Learner -> object store -> every worker -> echoes, all equal or `PushError`.

        `must_change`: the optimiser took a step with a gradient, so the workers' output has to differ.
        """
        started = time.perf_counter()
        published: Published = await self._within(self._learner.publish.remote(ema=ema), "learner.publish")
        calls = [worker.install.remote(published.ref) for worker in self._workers]
        echoes: list[Echo] = [await self._within(call, "worker.install") for call in calls]
        for index, echo in enumerate(echoes):
            if (echo.version, echo.digest) != (published.version, published.digest):
                raise PushError(
                    f"worker {index} echoed version {echo.version} digest {echo.digest}, pushed were "
                    f"{published.version} {published.digest}"
                )
        report = PushReport(
            published.version, published.digest, echoes[0].canary, published.size_bytes, published.gather_s,
            published.put_s, max(e.load_s for e in echoes), max(e.verify_s for e in echoes),
            time.perf_counter() - started,
        )  # fmt: skip
        if not ema:
            if must_change and self._last is not None:
                _check_effect(report, self._last)
            self._last = report
        return report

    async def _within(self, call: Any, what: str) -> Any:
        try:
            return await asyncio.wait_for(_as_future(call), self._deadline_s)
        except TimeoutError as error:
            raise PushError(f"{what}: no answer within {self._deadline_s:.0f} s") from error


async def _as_future(ref: Any) -> Any:
    return await ref


def _check_effect(report: PushReport, last: PushReport) -> None:
    if report.digest == last.digest:
        raise PushError(
            f"version {report.version} has the bytes of version {last.version}: the optimiser step changed "
            "nothing although the gradient was not zero (learning rate 0?)"
        )
    if report.canary == last.canary:
        raise PushError(
            f"version {report.version} differs from {last.version} but a worker's output does not: the adapter "
            "is loaded where the forward pass does not read it"
        )
