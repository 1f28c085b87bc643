"""Delivered or not sampled, with actors that are plain coroutines."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors.learner_worker import Published
from actors.weight_sync import PushError, WeightSync
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
    def __init__(self, *, deaf: bool = False, tampered: bool = False) -> None:
        self.held = ""
        self.deaf = deaf
        self.tampered = tampered
        self.canaries = 0
        self.install = Method(self._install)
        self.canary = Method(self._canary)

    def _install(self, snapshot: tuple[int, str]) -> Echo:
        version, digest = snapshot
        self.held = self.held if self.deaf else digest
        return Echo(version, digest + "x" if self.tampered else digest, 0.0, 0.0)

    def _canary(self) -> float:
        self.canaries += 1
        return float(sum(map(ord, self.held)))


def push(sync: WeightSync, **options: bool) -> Any:
    return asyncio.run(sync.push(**options))


def test_a_push_is_done_when_every_worker_echoed_it() -> None:
    workers = [FakeWorker(), FakeWorker(), FakeWorker()]
    report = push(WeightSync(FakeLearner(), workers, 5.0))
    assert (report.version, report.digest) == (0, "d0")
    assert [worker.held for worker in workers] == ["d0"] * 3


def test_a_worker_with_another_digest_is_named_with_both_digests() -> None:
    with pytest.raises(PushError, match=r"worker 1 echoed version 0 digest d0x.*0 d0"):
        push(WeightSync(FakeLearner(), [FakeWorker(), FakeWorker(tampered=True)], 5.0))


def test_the_canary_catches_an_adapter_that_changes_nothing() -> None:
    """Bytes arrive and are echoed, but the worker's output stays: refused at the first push with a gradient."""
    learner, worker = FakeLearner(), FakeWorker(deaf=True)
    sync = WeightSync(learner, [worker], 5.0)
    push(sync)
    learner.version, learner.digest = 1, "d1"
    with pytest.raises(PushError, match="version 1 differs from 0 but a worker's output does not"):
        push(sync, must_change=True)


def test_an_optimiser_step_that_changed_no_byte_is_refused() -> None:
    learner = FakeLearner()
    sync = WeightSync(learner, [FakeWorker()], 5.0)
    push(sync)
    learner.version = 1
    with pytest.raises(PushError, match="version 1 has the bytes of version 0"):
        push(sync, must_change=True)


def test_the_canary_costs_two_forwards_in_a_whole_run() -> None:
    learner, worker = FakeLearner(), FakeWorker()
    sync = WeightSync(learner, [worker], 5.0)
    for version in range(6):
        learner.version, learner.digest = version, f"d{version}"
        push(sync, must_change=version > 0)
    assert worker.canaries == 2
