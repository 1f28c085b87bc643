"""The loop of an online run, with local stand-ins for the lanes, the learner, the push and the evaluation."""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.controller import Controller, _Parts
from actors.fleet import Fleet
from actors.lanes import LaneClock, ScoredGroup
from actors.launch import Cluster
from actors.monitor import Monitor
from actors.role import Role
from actors.scoring import RewardPool
from actors.tasks import Alarm, Tasks
from actors.weight_sync import PushReport
from learner.report import TrainReport
from learner.state import StateFiles
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.metrics import Key, read_metrics
from rl.types import RewardTable, RolloutReceipt, SRTask

Weak = weakref.ReferenceType[ScoredGroup]


@dataclass
class Stage:
    """Everything around a controller, and what happened on it in order."""

    controller: Controller
    events: list[str]
    groups: dict[int, list[Weak]]
    """By the step that they were sampled for."""
    run_dir: Path
    held: dict[str, int] = field(default_factory=dict)
    """Event -> groups of finished steps that somebody still held when it began."""

    def happens(self, event: str) -> None:
        self.events.append(event)
        finished = [ref for step, refs in self.groups.items() if step < self.controller.step for ref in refs]
        self.held[event] = max(self.held.get(event, 0), sum(ref() is not None for ref in finished))


class Lanes:
    """Makes a group per slot, of the newest version."""

    def __init__(self, stage: Callable[[], Stage], lag: int, failing: int | None) -> None:
        self._stage, self._lag, self._failing = stage, lag, failing
        self.clock = LaneClock()

    async def fill(self, step: int, slot: int) -> ScoredGroup:
        stage = self._stage()
        stage.happens(f"fill {step}")
        if step == self._failing:
            raise RuntimeError(f"a lane of step {step} failed")
        ordinal = stage.controller.ledger.issue(step, slot)
        task = SRTask(ordinal, f"i{ordinal}", np.zeros((3, 4, 4), np.uint8), None, 4, 0)
        receipt = RolloutReceipt(ordinal, max(0, step - self._lag), "d", 4, 0.5)
        scores = np.arange(4.0)[:, None] + ordinal
        table = RewardTable(ordinal, ("lr_consistency",), scores, (0.1,))
        group = ScoredGroup(task, f"task {ordinal}", f"group {ordinal}", receipt, table)
        stage.groups.setdefault(step, []).append(weakref.ref(group))
        await asyncio.sleep(0)
        return group


def run_of(steps: int, lag: int, save_every: int) -> RunConfig:
    """Two groups of four a step, one reward."""
    raw = {
        "train": {"steps": steps, "groups_per_step": 2, "max_policy_lag": lag},
        "data": {"path": "skimage:camera"},
        "rollout": {"group_size": 4},
        "rewards": [{"name": "lr_consistency", "type": "lr_consistency"}],
        "checkpoint": {"every": save_every},
        "monitor": {"progress": False, "sample_every": 1000},
    }
    return validate(RunConfig, raw, "test")


@pytest.fixture
def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role_of: Callable[..., Role]
) -> Callable[..., tuple[Stage, Lanes]]:
    def make(
        steps: int, lag: int, *, save_every: int = 100, evaluate_at: tuple[int, ...] = (), failing: int | None = None
    ) -> tuple[Stage, Lanes]:
        config = run_of(steps, lag, save_every)
        events: list[str] = []

        async def train(rows: list[Any], *carriers: Any) -> TrainReport:
            events.append(f"train {carriers[2:]}")
            losses = {Key.LOSS_TOTAL: 0.5}
            return TrainReport(made.controller.step + 1, made.controller.step + 1, losses, {}, 1.0, 1e-4, 0.0)

        async def save() -> StateFiles:
            made.happens(f"save {made.controller.step}")
            return StateFiles.of({})

        async def push(*, ema: bool = False, must_change: bool = False) -> PushReport:
            events.append("push ema" if ema else f"push {must_change}")
            version = made.controller.step + must_change
            return PushReport(version, "d", 4, 0.0, 0.0, 0.0, 0.0, 0.0)

        async def publish(version: int) -> None:
            events.append(f"publish {version}")

        async def evaluate(phase: str, step: int) -> dict[str, float]:
            made.happens(f"evaluate {phase} {step}")
            return {}

        async def sheet(*_: Any) -> None:
            events.append("sheet")

        learner = SimpleNamespace(train=SimpleNamespace(remote=train), save=SimpleNamespace(remote=save))
        monitor = Monitor(config.monitor, tmp_path, "run", config.train.steps, {})

        async def started() -> None:
            """The base is the reference."""

        controller = Controller(config, Cluster((learner,), [started()], ()), monitor, tmp_path)
        made = Stage(controller, events, {}, tmp_path)
        lanes = Lanes(lambda: made, lag, failing)

        def parts() -> _Parts:
            rollout, reward = role_of("rollout"), role_of("reward.lr_consistency")
            stand_ins: dict[str, Any] = {
                "lanes": lanes, "sync": SimpleNamespace(push=push, last=None),
                "queues": [SimpleNamespace(close=lambda: events.append("close"), role=rollout, queued=0)],
                "versions": SimpleNamespace(publish=publish),
                "evaluator": SimpleNamespace(run=evaluate, due=lambda step: step in evaluate_at),
            }  # fmt: skip
            pools, reference = [RewardPool(config.rewards[0], reward)], asyncio.get_running_loop().create_future()
            alarm = Alarm()
            fleet = Fleet([rollout, reward])
            return _Parts(alarm, Tasks(alarm), fleet, pools=pools, reference=reference, **stand_ins)

        monkeypatch.setattr(controller, "_parts", parts)
        monkeypatch.setattr(controller, "_sheet", sheet)
        return made, lanes

    return make


def run(stage: Stage, *, resume: bool = False) -> Any:
    return asyncio.run(asyncio.wait_for(stage.controller.run(resume=resume), 20))


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_nothing_holds_the_groups_of_a_finished_step(stage: Callable[..., Any], lag: int) -> None:
    """At real size they are gigabytes of the object store. They are gone by reference counts, not when a collector
    runs: while the next step samples, while a checkpoint is written, and while an evaluation samples."""
    made, _ = stage(4, lag, save_every=1, evaluate_at=(2,))
    run(made)
    assert made.held == {
        "save 0": 0, "evaluate start 0": 0, "fill 0": 0, "save 1": 0, "fill 1": 0, "evaluate step 2": 0, "save 2": 0,
        "fill 2": 0, "save 3": 0, "fill 3": 0, "save 4": 0, "evaluate end 4": 0,
    }  # fmt: skip
    assert [ref() for refs in made.groups.values() for ref in refs] == [None] * 8


def test_the_order_of_a_run_without_lag(stage: Callable[..., Any]) -> None:
    made, _ = stage(2, 0, save_every=1)
    outcome = run(made)
    assert (outcome.steps, outcome.interrupted) == (2, False)
    first = ["save 0", "push False", "evaluate start 0", "push False", "publish 0"]
    step_1 = ["fill 0", "fill 0", "train ('group 0', 'group 1')", "push True", "publish 1", "save 1"]
    step_2 = ["fill 1", "fill 1", "train ('group 2', 'group 3')", "push True", "publish 2", "sheet", "save 2"]
    assert made.events == [*first, *step_1, *step_2, "evaluate end 2", "close"]


def test_no_lane_runs_across_an_evaluation(stage: Callable[..., Any]) -> None:
    """It borrows the workers: step 2 begins to sample after it, although the lag would let it begin before."""
    made, _ = stage(4, 1, evaluate_at=(2, 4))
    run(made)
    where = made.events.index("evaluate step 2")
    assert {event for event in made.events[:where] if event.startswith("fill")} == {"fill 0", "fill 1"}
    assert made.events[where + 1] == "push False", "the behaviour adapter, in the EMA's place"
    assert "evaluate step 4" not in made.events and made.events[-2] == "evaluate end 4"


def test_a_lane_of_a_later_step_that_fails_ends_the_run_at_once(stage: Callable[..., Any]) -> None:
    made, _ = stage(4, 1, failing=1)
    with pytest.raises(RuntimeError, match="a lane of step 1 failed"):
        run(made)
    assert not any(event.startswith("train") for event in made.events)
    assert made.events[-1] == "close"


def test_a_stop_finishes_and_saves_the_step_in_progress(stage: Callable[..., Any]) -> None:
    made, lanes = stage(9, 0)
    fill = lanes.fill

    async def stopping(step: int, slot: int) -> ScoredGroup:
        if step == 1:
            made.controller.stop.set()
        return await fill(step, slot)

    lanes.fill = stopping
    outcome = run(made)
    assert (outcome.steps, outcome.interrupted) == (2, True)
    assert made.events[-2:] == ["save 2", "close"]


def test_what_a_step_reports(stage: Callable[..., Any]) -> None:
    """Each owner of figures brings its own; nothing that is not in the table, nothing left out."""
    made, _ = stage(3, 1)
    run(made)
    records = read_metrics(made.run_dir / "metrics.jsonl")
    assert [record.step for record in records] == [1, 2, 3]
    sources = {key.split("/")[0] for key in records[0].values}
    assert sources == {
        "advantage", "fleet", "group", "idle", "loss", "optim", "perf", "policy", "publish", "reward", "time",
    }  # fmt: skip
    assert [record.values["policy/age_max"] for record in records] == [0, 1, 1]
    assert [record.values["policy/version"] for record in records] == [1, 2, 3]
    assert records[0].values["reward/lr_consistency/mean"] == 2.0
    assert sum(records[0].values["advantage/r_histogram"]) == 8
