"""No sampling before delivery: a push is done when every live worker has echoed version and digest."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.deadline import all_within, within
from actors.roles import Published
from rl.metrics import Key, Value
from rl.types import Echo

_SETTING = "learner.deadline_s"


class PushError(RuntimeError):
    """A snapshot did not arrive intact, or had no effect."""


@dataclass(frozen=True)
class PushReport:
    """Timings of one push; load and verify are those of the slowest worker."""

    version: int
    digest: str
    size_bytes: int
    gather_s: float
    put_s: float
    load_s: float
    verify_s: float
    total_s: float

    def values(self, lag_s: float) -> dict[str, Value]:
        """Under the keys of the metrics table; `lag_s`: time since the last optimiser step."""
        return {
            Key.POLICY_VERSION: float(self.version),
            Key.PUBLISH_LAG: lag_s,
            Key.PUBLISH_GATHER: self.gather_s,
            Key.PUBLISH_PUT: self.put_s,
            Key.PUBLISH_LOAD: self.load_s,
            Key.PUBLISH_VERIFY: self.verify_s,
            Key.PUBLISH_TOTAL: self.total_s,
            Key.PUBLISH_BYTES: float(self.size_bytes),
        }


class WeightSync:
    """Pushes snapshots, and checks their effect until one has been observed to have an effect."""

    def __init__(self, learner: Any, workers: Sequence[Any], deadline_s: float) -> None:
        self._learner = learner
        self._workers = workers
        self._deadline_s = deadline_s
        self._last: PushReport | None = None
        self._effects: list[float] | None = None
        """Effect of the first adapter, per worker, until a push that must change it has been checked."""
        self._watching = True

    async def push(self, *, ema: bool = False, must_change: bool = False) -> PushReport:
        """Learner -> object store -> every worker -> echoes, all equal or `PushError`.

        `must_change`: the optimiser took a step with a non-zero gradient, so the workers' output must differ.
        """
        started = time.perf_counter()
        published: Published = await within(
            self._learner.publish.remote(ema=ema), self._deadline_s, "push: learner.publish", _SETTING
        )
        probe = self._watching and not ema
        calls = [worker.install.remote(published.ref, probe=probe) for worker in self._workers]
        echoes: list[Echo] = await all_within(calls, self._deadline_s, "push: worker.install", _SETTING)
        for index, echo in enumerate(echoes):
            _check_echo(index, echo, published)
        report = PushReport(
            published.version, published.digest, published.size_bytes, published.gather_s,
            published.put_s, max(e.load_s for e in echoes), max(e.verify_s for e in echoes),
            time.perf_counter() - started,
        )  # fmt: skip
        if not ema:
            self._watch(report, echoes, must_change=must_change)
            self._last = report
        return report

    def _watch(self, report: PushReport, echoes: Sequence[Echo], *, must_change: bool) -> None:
        """After the first optimiser step every worker's output must differ from that of its initial adapter."""
        if must_change and self._last is not None and report.digest == self._last.digest:
            raise PushError(
                f"version {report.version} has the bytes of version {self._last.version}: the optimiser step changed "
                "nothing although the gradient was not zero (learning rate 0?)"
            )
        if not self._watching:
            return
        effects = [0.0 if echo.effect is None else echo.effect for echo in echoes]
        if self._effects is None or not must_change:
            self._effects = effects
            return
        unmoved = [index for index, pair in enumerate(zip(effects, self._effects, strict=True)) if pair[0] == pair[1]]
        if unmoved:
            raise PushError(
                f"version {report.version} is installed and worker(s) {unmoved} answer as before, adapter effect "
                f"{[effects[index] for index in unmoved]}: the adapter is loaded where the forward pass does not read "
                "it"
            )
        self._watching = False


def _check_echo(index: int, echo: Echo, published: Published) -> None:
    if (echo.version, echo.digest) != (published.version, published.digest):
        raise PushError(
            f"worker {index} echoed version {echo.version} digest {echo.digest}, pushed were "
            f"{published.version} {published.digest}"
        )
    if echo.modules == 0:
        raise PushError(f"worker {index} holds version {echo.version}, bound to 0 layers: no forward pass reads it")
