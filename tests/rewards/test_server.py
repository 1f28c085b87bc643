"""RewardServer: order, batching by size, maps, and failures that never become numbers."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards import RewardError
from rewards.sections import LrConsistencySection, NoiseSection, PyiqaSection, PythonRewardSection
from rewards.server import RewardServer
from rl.types import RolloutGroup, SRTask

Make = Callable[..., Any]


@pytest.fixture
def pair(group: Make) -> Callable[..., tuple[SRTask, RolloutGroup]]:
    def make(ordinal: int, side: int = 32, members: int = 3) -> tuple[SRTask, RolloutGroup]:
        one = group(side, members, at=60 + ordinal)
        task = SRTask(ordinal, f"i{ordinal}", one.lr, one.hr, 4, 0)
        latents = np.zeros((members, 1, 1, 1), np.float32)
        return task, RolloutGroup(ordinal, f"i{ordinal}", 0, "d", tuple(range(members)), latents, one.images)

    return make


def score(server: RewardServer, pairs: list[tuple[SRTask, RolloutGroup]]) -> list[Any]:
    return list(server.score([task for task, _ in pairs], [group for _, group in pairs]))


@pytest.mark.parametrize("batch_groups", [1, 2, 8])
def test_batching_changes_nothing(pair: Make, batch_groups: int) -> None:
    config = PyiqaSection(name="q", metric="psnr", batch_groups=batch_groups)
    pairs = [pair(0, 32), pair(1, 48), pair(2, 32, 2), pair(3, 48), pair(4, 32)]
    columns = score(RewardServer(config), pairs)
    assert [column.ordinal for column in columns] == [0, 1, 2, 3, 4]
    assert {column.name for column in columns} == {"q"}
    for column, (task, group) in zip(columns, pairs, strict=True):
        assert task.hr is not None
        mse = ((group.images / 255.0 - task.hr / 255.0) ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(column.scores, -10 * np.log10(mse), atol=1e-3)
        assert column.seconds > 0


def test_batches_hold_equal_sizes_only(pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RewardServer(LrConsistencySection(name="c", batch_groups=2))
    seen: list[list[int]] = []
    original = server.reward.score_groups
    monkeypatch.setattr(
        server.reward, "score_groups", lambda gs: (seen.append([g.images.shape[2] for g in gs]), original(gs))[1]
    )
    score(server, [pair(0, 32), pair(1, 48), pair(2, 32), pair(3, 32)])
    assert seen == [[32, 32], [32], [48]]


def test_a_failure_names_its_ordinals(pair: Make, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    value = "float('nan') if len(images) == 2 else 0.0"
    path.write_text(f"def score(images, lr, hr, scale): return [{value}] * len(images)")
    server = RewardServer(PythonRewardSection(name="mine", file=str(path), batch_groups=4))
    with pytest.raises(RewardError, match=r"'mine' \(groups \[7\]\)") as caught:
        score(server, [pair(5), pair(7, 32, 2), pair(9)])
    assert caught.value.ordinals == (7,) and caught.value.groups == (1,)
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, RewardError) and str(again) == str(caught.value) and again.ordinals == (7,)


def test_groups_that_do_not_fit_their_task_are_refused(pair: Make) -> None:
    server = RewardServer(LrConsistencySection(name="c"))
    task, group = pair(0)
    with pytest.raises(ValueError, match="group of task 0, got the group of task 1"):
        server.score([task], [pair(1)[1]])
    with pytest.raises(ValueError, match="uint8"):
        server.score([task], [replace(group, images=group.images.astype(np.float32))])
    with pytest.raises(ValueError, match="expected hr"):
        server.score([task], [pair(0, 48)[1]])
    with pytest.raises(ValueError):
        server.score([task], [])
    assert server.score([], []) == []


@pytest.mark.parametrize("cell_px, grid", [(16, (2, 3)), (32, (1, 2)), (64, (1, 1)), (5, (5, 8))])
def test_a_map_has_a_cell_for_every_part_of_the_image(pair: Make, cell_px: int, grid: tuple[int, int]) -> None:
    """24 x 40 pixels: cells at the edges may be smaller."""
    task, group = pair(3, 40)
    assert task.hr is not None
    task = replace(task, hr=task.hr[:, :24], lr=task.lr[:, :6])
    group = replace(group, images=group.images[:, :, :24])
    for config in (LrConsistencySection(name="c"), PyiqaSection(name="q", metric="ssim"), NoiseSection(name="n")):
        (column,) = score(RewardServer(config, cell_px=cell_px), [(task, group)])
        (plain,) = score(RewardServer(config), [(task, group)])
        np.testing.assert_array_equal(column.scores, plain.scores)
        assert column.map.shape == (3, *grid) and plain.map is None
        if grid == (1, 1):
            np.testing.assert_allclose(column.map.values().ravel(), column.scores, rtol=1e-3)


def test_maps_belong_to_their_groups(pair: Make) -> None:
    """Whatever the batches: cells of 16 pixels against the squared error of each."""
    pairs = [pair(0, 32), pair(1, 48), pair(2, 32, 2), pair(3, 48)]
    server = RewardServer(PyiqaSection(name="q", metric="psnr", batch_groups=2), cell_px=16)
    for column, (task, group) in zip(score(server, pairs), pairs, strict=True):
        assert task.hr is not None
        squared = ((group.images / 255.0 - task.hr / 255.0) ** 2).mean(axis=1)
        members, side = len(squared), squared.shape[1] // 16
        mse = squared.reshape(members, side, 16, side, 16).mean(axis=(2, 4))
        np.testing.assert_allclose(column.map.values(), -10 * np.log10(mse), atol=0.01)


def test_no_map_where_the_section_or_the_reward_has_none(pair: Make, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def score(images, lr, hr, scale): return images.mean(axis=(1, 2, 3))")
    for config in (
        LrConsistencySection(name="c", map=False),
        PyiqaSection(name="q", metric="nlpd"),
        PythonRewardSection(name="mine", file=str(path)),
    ):
        (column,) = score(RewardServer(config, cell_px=16), [pair(0)])
        (plain,) = score(RewardServer(config), [pair(0)])
        assert column.map is None
        np.testing.assert_array_equal(column.scores, plain.scores)


def test_a_failed_map_names_its_group_and_is_ignored_where_nobody_asked(pair: Make, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def score(images, lr, hr, scale):\n"
        "    maps = images.mean(axis=1)\n"
        "    if len(images) == 2: maps[1, 5, 5] = float('nan')\n"
        "    return images.mean(axis=(1, 2, 3)), maps\n"
    )
    config = PythonRewardSection(name="mine", file=str(path), batch_groups=4)
    pairs = [pair(5), pair(7, 32, 2), pair(9)]
    with pytest.raises(RewardError, match=r"'mine' \(groups \[7\]\): 1 of 2048 values .* not finite") as caught:
        score(RewardServer(config, cell_px=16), pairs)
    assert caught.value.ordinals == (7,) and caught.value.groups == (1,)
    assert [column.map for column in score(RewardServer(config), pairs)] == [None] * 3


def test_a_builder_without_the_map_that_its_section_promises_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the run asks for maps and the recipe has not switched this one off."""
    monkeypatch.setattr("rewards.server.build_reward", lambda section: object())
    RewardServer(LrConsistencySection(name="c"))
    RewardServer(LrConsistencySection(name="c", map=False), cell_px=16)
    with pytest.raises(RewardError, match=r"reward 'c': its section says has_map, but .* has no score_locally\(\)"):
        RewardServer(LrConsistencySection(name="c"), cell_px=16)
