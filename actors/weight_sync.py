"""No sampling before delivery: a push is done when every ready worker has echoed version and digest, and a worker that
joins becomes ready by echoing what was pushed last."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.deadline import within
from actors.member import Deadline, Member, MemberLost
from actors.role import Role
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
    """Pushes snapshots, and checks their effect until one has been observed to have an effect.

    Args:
        learner: the rank that publishes.
        workers: the rollout workers; one that dies during a push is replaced and does not hold it up.
    """

    def __init__(self, learner: Any, workers: Role, deadline_s: float) -> None:
        self._learner = learner
        self._workers = workers
        self._deadline_s = deadline_s
        self._newest: Published | None = None
        self._published = asyncio.Event()
        self.last: PushReport | None = None
        self._effects: Mapping[str, float] | None = None
        """Effect of the first adapter, per worker, until a push that must change it has been checked."""
        self._watching = True

    async def push(self, *, ema: bool = False, must_change: bool = False) -> PushReport:
        """Learner -> object store -> every ready worker -> echoes, all equal or `PushError`.

        `must_change`: the optimiser took a step with a non-zero gradient, so the workers' output must differ.
        """
        started = time.perf_counter()
        published: Published = await within(
            self._learner.publish.remote(ema=ema), self._deadline_s, "push: learner.publish", _SETTING
        )
        self._newest = published
        self._published.set()
        probe = self._watching and not ema
        members = self._workers.ready
        answers = await asyncio.gather(*(self._delivered(member, published, probe) for member in members))
        echoes = {m.name: echo for m, echo in zip(members, answers, strict=True) if echo is not None}
        report = PushReport(
            published.version, published.digest, published.size_bytes, published.gather_s, published.put_s,
            max((e.load_s for e in echoes.values()), default=0.0),
            max((e.verify_s for e in echoes.values()), default=0.0), time.perf_counter() - started,
        )  # fmt: skip
        if not ema:
            self._refuse_equal_bytes(report, must_change=must_change)
            self._watch(report, echoes, must_change=must_change)
            self.last = report
        return report

    async def admit(self, member: Member) -> None:
        """Have a worker that joins echo the snapshot that was pushed last, whichever that is when it is done."""
        await self._published.wait()
        echoed: Published | None = None
        while self._newest is not None and echoed is not self._newest:
            echoed = self._newest
            await self._install(member, echoed, probe=False)

    async def _delivered(self, member: Member, published: Published, probe: bool) -> Echo | None:
        """None: the worker is lost."""
        try:
            return await self._install(member, published, probe=probe)
        except MemberLost as loss:
            self._workers.lose(member, loss.why)
            return None

    async def _install(self, member: Member, published: Published, *, probe: bool) -> Echo:
        deadline = Deadline(self._deadline_s, f"push: {member.name}.install", _SETTING)
        echo: Echo = await member.call(lambda handle: handle.install.remote(published.ref, probe=probe), deadline)
        if (echo.version, echo.digest) != (published.version, published.digest):
            raise PushError(
                f"{member.name} echoed version {echo.version} digest {echo.digest}, pushed were "
                f"{published.version} {published.digest}"
            )
        if echo.modules == 0:
            raise PushError(f"{member.name} holds version {echo.version}, bound to 0 layers: no forward pass reads it")
        member.version = echo.version
        return echo

    def _refuse_equal_bytes(self, report: PushReport, *, must_change: bool) -> None:
        if must_change and self.last is not None and report.digest == self.last.digest:
            raise PushError(
                f"version {report.version} has the bytes of version {self.last.version}: the optimiser step changed "
                "nothing although the gradient was not zero (learning rate 0?)"
            )

    def _watch(self, report: PushReport, echoes: Mapping[str, Echo], *, must_change: bool) -> None:
        """After the first optimiser step every worker's output must differ from that of its initial adapter."""
        if not self._watching or not echoes:
            return
        effects = {name: 0.0 if echo.effect is None else echo.effect for name, echo in echoes.items()}
        if self._effects is None or not must_change:
            self._effects = effects
            return
        unmoved = [name for name, effect in effects.items() if self._effects.get(name) == effect]
        if unmoved:
            raise PushError(
                f"version {report.version} is installed and {unmoved} answer as before, adapter effect "
                f"{[effects[name] for name in unmoved]}: the adapter is loaded where the forward pass does not read it"
            )
        self._watching = False
