"""Delivered or not sampled, with actors that are plain coroutines."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from actors.member import Member
from actors.role import Role
from actors.roles import Published
from actors.weight_sync import PushError, PushReport, WeightSync
from rl.metrics import Key, Metrics
from rl.types import Echo


class Method:
    """`actor.method.remote(...)` that returns an awaitable, as a Ray handle does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        async def call() -> Any:
            return self._function(*args, **kwargs)

        return call()


class FakeLearner:
    def __init__(self) -> None:
        self.version = 0
        self.digest = "d0"
        self.publish = Method(self._publish)

    def _publish(self, *, ema: bool = False) -> Published:
        return Published((self.version, self.digest), self.version, self.digest, 4, 0.0, 0.0)  # type: ignore[arg-type]


class FakeWorker:
    """Its output is the sum of the letters of the digest that its forward pass reads, that of the base is 0."""

    def __init__(self, *, deaf: bool = False, unbound: bool = False, tampered: bool = False) -> None:
        self.held = ""
        self.deaf = deaf
        self.unbound = unbound
        self.tampered = tampered
        self.probes = 0
        self.install: Any = Method(self._install)
        self.ready = Method(lambda: None)

    def _install(self, snapshot: tuple[int, str], *, probe: bool = False) -> Echo:
        version, digest = snapshot
        self.held = self.held if self.deaf else digest
        self.probes += probe
        effect = float(sum(map(ord, self.held))) if probe else None
        return Echo(version, digest + "x" if self.tampered else digest, 0.25, 0.5, 0 if self.unbound else 7, effect)


Pushes = Callable[..., list[PushReport]]


@pytest.fixture
def pushes(role_of: Callable[..., Role]) -> Pushes:
    """One push for each of `changes`, which runs before it and returns its options."""

    def run(learner: FakeLearner, workers: list[FakeWorker], *changes: Callable[[], Any]) -> list[PushReport]:
        async def all_of_them() -> list[PushReport]:
            sync = WeightSync(learner, role_of("rollout", *workers), 5.0)
            return [await sync.push(**(change() or {})) for change in changes]

        return asyncio.run(all_of_them())

    return run


def at(learner: FakeLearner, version: int, digest: str | None = None, **options: bool) -> Callable[[], Any]:
    """The learner has made a version."""

    def change() -> dict[str, bool]:
        learner.version, learner.digest = version, digest or learner.digest
        return options

    return change


def test_a_push_is_done_when_every_worker_echoed_it(pushes: Pushes) -> None:
    workers = [FakeWorker(), FakeWorker(), FakeWorker()]
    (report,) = pushes(FakeLearner(), workers, dict)
    assert (report.version, report.digest) == (0, "d0")
    assert [worker.held for worker in workers] == ["d0"] * 3


def test_a_push_reports_itself_under_the_keys_of_the_table(pushes: Pushes) -> None:
    values = pushes(FakeLearner(), [FakeWorker()], dict)[0].values(lag_s=1.5)
    assert {Key(key).value.split("/")[0] for key in values} == {"policy", "publish"}
    assert (values[Key.POLICY_VERSION], values[Key.PUBLISH_BYTES], values[Key.PUBLISH_LAG]) == (0.0, 4.0, 1.5)
    assert (values[Key.PUBLISH_LOAD], values[Key.PUBLISH_VERIFY]) == (0.25, 0.5)
    assert Metrics(1, 0.0, values)


def test_a_worker_with_another_digest_is_named_with_both_digests(pushes: Pushes) -> None:
    with pytest.raises(PushError, match=r"rollout-1 echoed version 0 digest d0x.*0 d0"):
        pushes(FakeLearner(), [FakeWorker(), FakeWorker(tampered=True)], dict)


def test_an_adapter_that_is_bound_to_nothing_is_refused_at_the_first_push(pushes: Pushes) -> None:
    """Others' adapters were accepted and bound to no layer: here before a group is sampled, and by worker."""
    with pytest.raises(PushError, match=r"rollout-1 holds version 0, bound to 0 layers: no forward pass reads it"):
        pushes(FakeLearner(), [FakeWorker(), FakeWorker(unbound=True)], dict)


def test_the_canary_catches_an_adapter_that_changes_nothing(pushes: Pushes) -> None:
    """Bytes arrive and are echoed, but one worker's output stays: refused at the first push with a gradient."""
    learner = FakeLearner()
    with pytest.raises(PushError, match=r"version 1 is installed and \['rollout-1'\] answer as before"):
        pushes(learner, [FakeWorker(), FakeWorker(deaf=True)], dict, at(learner, 1, "d1", must_change=True))


def test_an_optimiser_step_that_changed_no_byte_is_refused(pushes: Pushes) -> None:
    learner = FakeLearner()
    with pytest.raises(PushError, match="version 1 has the bytes of version 0"):
        pushes(learner, [FakeWorker()], dict, at(learner, 1, must_change=True))


def test_a_step_without_a_gradient_may_change_nothing_and_is_watched_again(pushes: Pushes) -> None:
    """All advantages 0: neither is the step refused, nor does the watch end with it."""
    learner, worker = FakeLearner(), FakeWorker()

    def deafened() -> Any:
        worker.deaf = True
        return at(learner, 2, "d2", must_change=True)()

    with pytest.raises(PushError, match="version 2 is installed"):
        pushes(learner, [worker], dict, at(learner, 1), deafened)


def test_an_evaluations_adapter_is_neither_probed_nor_remembered(pushes: Pushes) -> None:
    learner, worker = FakeLearner(), FakeWorker()

    def back() -> Any:
        assert (worker.held, worker.probes) == ("ema", 1)
        return at(learner, 0, "d0", must_change=True)()

    with pytest.raises(PushError, match="version 0 has the bytes of version 0"):
        pushes(learner, [worker], dict, at(learner, 0, "ema", ema=True), back)


def test_the_canary_costs_two_probes_in_a_whole_run(pushes: Pushes) -> None:
    learner, worker = FakeLearner(), FakeWorker()
    pushes(learner, [worker], *(at(learner, v, f"d{v}", must_change=v > 0) for v in range(6)))
    assert worker.probes == 2


def test_a_worker_that_dies_during_a_push_does_not_hold_it_up(role_of: Callable[..., Role]) -> None:
    """It is dismissed, and another takes its place with the adapter that was pushed last, before it may sample."""

    async def scenario() -> None:
        learner, dead, well, dismissed = FakeLearner(), FakeWorker(), FakeWorker(), []

        async def dying(*_: Any, **__: Any) -> Any:
            raise ActorDiedError

        dead.install = SimpleNamespace(remote=dying)
        replacement = FakeWorker()
        role = role_of("rollout", dead, well, more=[replacement], dismissed=dismissed)
        sync = WeightSync(learner, role, 5.0)

        async def greet(member: Member, _: Any) -> None:
            assert member.state == "joining"
            await sync.admit(member)

        role.greet = greet
        report = await sync.push()
        assert (report.version, well.held, dismissed) == (0, "d0", [dead])
        while len(role.ready) < 2:
            await asyncio.sleep(0)
        assert [(m.name, m.version) for m in role.ready] == [("rollout-1", 0), ("rollout-2", 0)]
        assert replacement.held == "d0"

    asyncio.run(scenario())


def test_a_worker_that_joins_during_a_push_echoes_the_newer_adapter(role_of: Callable[..., Role]) -> None:
    """The push that overtakes it finds it not ready; it is not ready before it holds what that push delivered."""

    async def scenario() -> list[str]:
        learner, joiner = FakeLearner(), FakeWorker()
        role = role_of("rollout")
        sync = WeightSync(learner, role, 5.0)
        await sync.push()
        installed: list[str] = []
        slow = joiner.install

        def install(snapshot: tuple[int, str], **options: bool) -> Any:
            installed.append(snapshot[1])
            return overtaken(snapshot, **options) if len(installed) == 1 else slow.remote(snapshot, **options)

        async def overtaken(snapshot: tuple[int, str], **options: bool) -> Any:
            learner.version, learner.digest = 1, "d1"
            await sync.push()
            return await slow.remote(snapshot, **options)

        joiner.install = SimpleNamespace(remote=install)
        await sync.admit(Member("rollout-9", joiner))
        return installed

    assert asyncio.run(scenario()) == ["d0", "d1"]
