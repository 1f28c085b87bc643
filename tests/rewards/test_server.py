"""RewardServer: order, batching by size, and failures that never become numbers."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards import RewardError
from rewards.sections import LrConsistencySection, PyiqaSection, PythonRewardSection
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
