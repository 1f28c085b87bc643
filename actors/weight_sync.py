"""Delivered or not sampled: a push is done when every live worker has echoed version and digest."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.deadline import all_within, within
from actors.learner_worker import Published
from rl.types import Echo

_SETTING = "learner.deadline_s"


class PushError(RuntimeError):
    """A snapshot did not arrive whole, or arrived without effect."""


@dataclass(frozen=True)
class PushReport:
    """Seconds of one push; load and verify are the slowest worker's."""

    version: int
    digest: str
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
        self._canary: float | None = None
        """A worker's output under the first adapter, until one push has been seen to change it."""

    async def push(self, *, ema: bool = False, must_change: bool = False) -> PushReport:
        """Learner -> object store -> every worker -> echoes, all equal or `PushError`.

        `must_change`: the optimiser took a step with a gradient, so the workers' output has to differ.
        """
        started = time.perf_counter()
        published: Published = await within(
            self._learner.publish.remote(ema=ema), self._deadline_s, "push: learner.publish", _SETTING
        )
        calls = [worker.install.remote(published.ref) for worker in self._workers]
        echoes: list[Echo] = await all_within(calls, self._deadline_s, "push: worker.install", _SETTING)
        for index, echo in enumerate(echoes):
            if (echo.version, echo.digest) != (published.version, published.digest):
                raise PushError(
                    f"worker {index} echoed version {echo.version} digest {echo.digest}, pushed were "
                    f"{published.version} {published.digest}"
                )
        report = PushReport(
            published.version, published.digest, published.size_bytes, published.gather_s,
            published.put_s, max(e.load_s for e in echoes), max(e.verify_s for e in echoes),
            time.perf_counter() - started,
        )  # fmt: skip
        if not ema:
            await self._watch_canary(report, must_change=must_change)
            self._last = report
        return report

    async def _watch_canary(self, report: PushReport, *, must_change: bool) -> None:
        """After the first optimiser step a worker's output has to differ from that of the adapter it started with."""
        if self._last is not None and (self._canary is None or not must_change):
            return
        call = self._workers[0].canary.remote()
        canary: float = await within(call, self._deadline_s, "push: worker.canary", _SETTING)
        if self._last is None or self._canary is None:
            self._canary = canary
            return
        _check_effect(report, self._last, changed=canary != self._canary)
        self._canary = None


def _check_effect(report: PushReport, last: PushReport, *, changed: bool) -> None:
    if report.digest == last.digest:
        raise PushError(
            f"version {report.version} has the bytes of version {last.version}: the optimiser step changed "
            "nothing although the gradient was not zero (learning rate 0?)"
        )
    if not changed:
        raise PushError(
            f"version {report.version} differs from {last.version} but a worker's output does not: the adapter "
            "is loaded where the forward pass does not read it"
        )
