"""Delivered or not sampled, with actors that are plain coroutines."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors.roles import Published
from actors.weight_sync import PushError, WeightSync
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
        self.install = Method(self._install)

    def _install(self, snapshot: tuple[int, str], *, probe: bool = False) -> Echo:
        version, digest = snapshot
        self.held = self.held if self.deaf else digest
        self.probes += probe
        effect = float(sum(map(ord, self.held))) if probe else None
        return Echo(version, digest + "x" if self.tampered else digest, 0.25, 0.5, 0 if self.unbound else 7, effect)


def push(sync: WeightSync, **options: bool) -> Any:
    return asyncio.run(sync.push(**options))


def test_a_push_is_done_when_every_worker_echoed_it() -> None:
    workers = [FakeWorker(), FakeWorker(), FakeWorker()]
    report = push(WeightSync(FakeLearner(), workers, 5.0))
    assert (report.version, report.digest) == (0, "d0")
    assert [worker.held for worker in workers] == ["d0"] * 3


def test_a_push_reports_itself_under_the_keys_of_the_table() -> None:
    values = push(WeightSync(FakeLearner(), [FakeWorker()], 5.0)).values(lag_s=1.5)
    assert {Key(key).value.split("/")[0] for key in values} == {"policy", "publish"}
    assert (values[Key.POLICY_VERSION], values[Key.PUBLISH_BYTES], values[Key.PUBLISH_LAG]) == (0.0, 4.0, 1.5)
    assert (values[Key.PUBLISH_LOAD], values[Key.PUBLISH_VERIFY]) == (0.25, 0.5)
    assert Metrics(1, 0.0, values)


def test_a_worker_with_another_digest_is_named_with_both_digests() -> None:
    with pytest.raises(PushError, match=r"worker 1 echoed version 0 digest d0x.*0 d0"):
        push(WeightSync(FakeLearner(), [FakeWorker(), FakeWorker(tampered=True)], 5.0))


def test_an_adapter_that_is_bound_to_nothing_is_refused_at_the_first_push() -> None:
    """Others' adapters were accepted and bound to no layer: here before a group is sampled, and by worker."""
    with pytest.raises(PushError, match=r"worker 1 holds version 0, bound to 0 layers: no forward pass reads it"):
        push(WeightSync(FakeLearner(), [FakeWorker(), FakeWorker(unbound=True)], 5.0))


def test_the_canary_catches_an_adapter_that_changes_nothing() -> None:
    """Bytes arrive and are echoed, but one worker's output stays: refused at the first push with a gradient."""
    learner = FakeLearner()
    sync = WeightSync(learner, [FakeWorker(), FakeWorker(deaf=True)], 5.0)
    push(sync)
    learner.version, learner.digest = 1, "d1"
    with pytest.raises(PushError, match=r"version 1 is installed and worker\(s\) \[1\] answer as before"):
        push(sync, must_change=True)


def test_an_optimiser_step_that_changed_no_byte_is_refused() -> None:
    learner = FakeLearner()
    sync = WeightSync(learner, [FakeWorker()], 5.0)
    push(sync)
    learner.version = 1
    with pytest.raises(PushError, match="version 1 has the bytes of version 0"):
        push(sync, must_change=True)


def test_a_step_without_a_gradient_may_change_nothing_and_is_watched_again() -> None:
    """All advantages 0: neither is the step refused, nor does the watch end with it."""
    learner, worker = FakeLearner(), FakeWorker()
    sync = WeightSync(learner, [worker], 5.0)
    push(sync)
    learner.version = 1
    push(sync)
    worker.deaf = True
    learner.version, learner.digest = 2, "d2"
    with pytest.raises(PushError, match="version 2 is installed"):
        push(sync, must_change=True)


def test_an_evaluations_adapter_is_neither_probed_nor_remembered() -> None:
    learner, worker = FakeLearner(), FakeWorker()
    sync = WeightSync(learner, [worker], 5.0)
    push(sync)
    learner.digest = "ema"
    push(sync, ema=True)
    assert (worker.held, worker.probes) == ("ema", 1)
    learner.digest = "d0"
    with pytest.raises(PushError, match="version 0 has the bytes of version 0"):
        push(sync, must_change=True)


def test_the_canary_costs_two_probes_in_a_whole_run() -> None:
    learner, worker = FakeLearner(), FakeWorker()
    sync = WeightSync(learner, [worker], 5.0)
    for version in range(6):
        learner.version, learner.digest = version, f"d{version}"
        push(sync, must_change=version > 0)
    assert worker.probes == 2
