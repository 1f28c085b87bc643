"""A thousand random schedules of faults through the real controller, in virtual time: nothing is lost, nothing is
trained twice, and no failure becomes a number."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_run import World, cluster, value_of
from virtual_time import virtually

import actors.lanes
from actors.controller import Controller
from actors.monitor import Monitor
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.identity import Identity
from rl.types import SRTask

STEPS, GROUPS = 4, 3
Simulate = Callable[..., tuple[World, float]]


def recipe(lag: int, workers: int, **more: Any) -> RunConfig:
    rewards = [
        {"name": name, "type": "pyiqa", "replicas": 2, "deadline_s": 30, "retries": 4, "batch_groups": 2}
        for name in ("psnr_y", "piqe")
    ]
    raw = {
        "train": {"steps": STEPS, "groups_per_step": GROUPS, "max_policy_lag": lag},
        "data": {"path": "skimage:camera"},
        "rollout": {"group_size": 4, "workers": workers, "deadline_s": 60, "retries": 4},
        "rewards": rewards,
        "checkpoint": {"every": 1000},
        "monitor": {"progress": False, "sample_every": 10**6},
        **more,
    }
    return validate(RunConfig, raw, "test")


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """One run; returns its world and the virtual seconds it took. Checks every score that reaches an advantage."""
    monkeypatch.setattr(actors.lanes.ray, "put", lambda task: task)
    pixels = np.zeros((3, 4, 4), np.uint8)
    monkeypatch.setattr(
        TaskSource, "task", lambda _, n: SRTask(n, f"i{n}", pixels, np.zeros((3, 16, 16), np.uint8), 4, 0)
    )

    def run(world: World, config: RunConfig) -> tuple[World, float]:
        async def everything() -> float:
            monitor = Monitor(config.monitor, tmp_path, "run", config.train.steps, {})
            controller = Controller(config, cluster(world, config), monitor, tmp_path)
            train = controller._train

            async def checked(groups: Any) -> Any:
                for group in groups:
                    for name, column in zip(group.table.names, group.table.scores.T, strict=True):
                        right = np.arange(config.group_size) + value_of(group.task.ordinal, name)
                        world.false_scores += not np.array_equal(column, right)
                return await train(groups)

            async def nothing(*_: Any) -> None:
                """There are no pixels and no state to keep."""

            controller._train = checked  # type: ignore[method-assign]
            controller._sheet = controller._save = nothing  # type: ignore[method-assign]
            chaos = asyncio.ensure_future(world.strike())
            await controller.run(resume=False)
            chaos.cancel()
            assert controller.ledger.steps == config.train.steps and not controller.ledger.pending
            return asyncio.get_running_loop().time()

        return world, virtually(everything())

    return run


def once_each(world: World, steps: int = STEPS) -> bool:
    """Every slot of every step, in order, whatever attempt."""
    groups = [Identity.of(ordinal, GROUPS) for ordinal in world.trained]
    return [(g.step, g.slot) for g in groups] == [(step, slot) for step in range(steps) for slot in range(GROUPS)]


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_without_faults_every_group_is_its_first_attempt(simulate: Simulate, lag: int) -> None:
    world, _ = simulate(World(random.Random(0)), recipe(lag, 2))
    assert world.trained == [*range(STEPS * GROUPS)] and not world.fired


@pytest.mark.parametrize("block", range(10))
def test_nothing_is_lost_repeated_or_invented_over_a_hundred_schedules(simulate: Simulate, block: int) -> None:
    """Kills, delays of up to a minute, hangs, answers of the wrong length or for other groups: one in 8 to 60 s."""
    fired: Counter[str] = Counter()
    for seed in range(100 * block, 100 * block + 100):
        rng = random.Random(seed)
        config = recipe(rng.choice([0, 1, 2]), rng.choice([1, 2, 4]))
        world, _ = simulate(World(rng, fault_every=rng.uniform(8, 60)), config)
        assert once_each(world) and world.false_scores == 0, f"seed {seed}: {world.trained}"
        fired += world.fired
    assert min(fired[fault] for fault in ("kill", "delay", "hang", "wrong")) >= 50, fired
