"""What a run leaves of a group's pixels: the sheet, and the maps where advantages have a place."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.controller import Controller
from actors.lanes import ScoredGroup
from actors.launch import Cluster
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.types import F64, RewardMap, RewardTable, RolloutGroup, RolloutReceipt, SRTask

LOCAL = np.array([[[1.0, 3.0], [0.0, 0.0]], [[-1.0, -3.0], [0.0, 0.0]]])
"""Advantages of two members in 2 x 2 cells; means 1 and -1."""


def scored(local: F64, answer: Any) -> ScoredGroup:
    """Two members of 32 x 32 pixels, 2 x 2 cells of flux2sr."""
    task = SRTask(7, "cat", np.zeros((3, 8, 8), np.uint8), None, 4, 0)
    table = RewardTable(7, ("lr_consistency",), np.array([[30.0], [31.0]]), (0.1,), (RewardMap.of(local),))
    return ScoredGroup(task, "task", answer, RolloutReceipt(7, 0, "d", 2, 0.5), table)


def drawn(run_dir: Path, advantages: F64, r: F64, spatial: str) -> tuple[Any, ...]:
    """Draws the sheet of step 0 and returns what the monitor is given."""
    raw = {
        "data": {"path": "skimage:camera"},
        "rewards": [{"name": "lr_consistency", "type": "lr_consistency"}],
        "advantage": {"spatial": spatial},
    }
    logged: list[tuple[Any, ...]] = []
    monitor: Any = SimpleNamespace(log_samples=lambda *call: logged.append(call))
    controller = Controller(validate(RunConfig, raw, "test"), Cluster((SimpleNamespace(),), [], ()), monitor, run_dir)
    images = np.zeros((2, 3, 32, 32), np.uint8)

    async def draw() -> None:
        answer: asyncio.Future[RolloutGroup] = asyncio.get_running_loop().create_future()
        answer.set_result(RolloutGroup(7, "cat", 0, "d", (1, 2), np.zeros((2, 4, 2, 2), np.float32), images))
        await controller._sheet(scored(LOCAL, answer), advantages, r)

    asyncio.run(draw())
    (call,) = logged
    return call


@pytest.mark.parametrize("spatial", ["map", "off"])
def test_maps_are_drawn_and_logged_where_advantages_have_cells(tmp_path: Path, spatial: str) -> None:
    advantages = LOCAL if spatial == "map" else LOCAL.mean(axis=(1, 2))
    step, sheet, rows, maps = drawn(tmp_path, advantages, 0.5 + advantages / 10, spatial)
    assert (step, sheet) == (0, tmp_path / "samples" / "step_000000_ordinal_000007.png")
    assert [(row.advantage, row.r) for row in rows] == [(1.0, 0.6), (-1.0, 0.4)], "means over the cells"
    beside = tmp_path / "samples" / "step_000000_ordinal_000007_maps.png"
    assert maps == (beside if spatial == "map" else None)
    assert beside.exists() == (spatial == "map") and sheet.exists()
