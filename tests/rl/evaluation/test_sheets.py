"""Sheets: sizes, what the sidecar says, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.evaluation.sheets import (
    Cell,
    ContactRow,
    bicubic_upscale,
    sheet_path,
    write_contact_sheet,
    write_sample_sheet,
)
from rl.types import RewardTable, RolloutGroup, SRTask

ADVANTAGES = np.array([-1.0, 0.25, 0.75])
WEIGHTS = np.array([0.4, 0.525, 0.575])


def example(side: int = 32) -> tuple[SRTask, RolloutGroup, RewardTable]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(3, 3, side, side), dtype=np.uint8)
    lr = rng.integers(0, 256, size=(3, side // 4, side // 4), dtype=np.uint8)
    task = SRTask(ordinal=7, lr_id="skimage:cat@3", lr=lr, hr=images[0], scale=4, seed=0)
    group = RolloutGroup(7, "skimage:cat@3", 5, "abc", (11, 12, 2**63), np.zeros((3, 4, 2, 2), np.float32), images)
    table = RewardTable(7, ("musiq", "lr"), np.array([[60.0, 0.9], [61.5, 0.8], [59.0, 0.95]]), (0.1, 0.2))
    return task, group, table


def test_sheet_shows_lr_hr_and_members_with_exact_pixels(tmp_path: Path) -> None:
    task, group, table = example()
    path = tmp_path / "samples" / "s.png"
    rows = write_sample_sheet(path, task, group, table, ADVANTAGES, WEIGHTS)
    assert [row.scores["musiq"] for row in rows] == [60.0, 61.5, 59.0]
    sheet = np.asarray(Image.open(path))
    # 32 pixels are shown 8 times as large; LR, HR and member 0 lie in the first of two lines of three
    found = _find(sheet, np.repeat(np.repeat(group.images[0].transpose(1, 2, 0), 8, 0), 8, 1))
    assert found == 2, "HR (equal to member 0 here) and member 0"
    assert _find(sheet, np.repeat(np.repeat(task.lr.transpose(1, 2, 0), 32, 0), 32, 1)) == 1


def test_sidecar_tells_the_same_facts(tmp_path: Path) -> None:
    task, group, table = example()
    write_sample_sheet(tmp_path / "s.png", task, group, table, ADVANTAGES, WEIGHTS)
    facts = json.loads((tmp_path / "s.json").read_text())
    assert (facts["ordinal"], facts["lr_id"], facts["policy_version"], facts["digest"]) == (
        7,
        "skimage:cat@3",
        5,
        "abc",
    )
    last = {"member": 2, "seed": 2**63, "advantage": 0.75, "r": 0.575, "scores": {"musiq": 59.0, "lr": 0.95}}
    assert facts["members"][2] == last


def test_large_images_are_shrunk_and_hr_may_lack(tmp_path: Path) -> None:
    task, group, table = example(side=1024)
    write_sample_sheet(tmp_path / "s.png", replace(task, hr=None), group, table, ADVANTAGES, WEIGHTS)
    width, height = Image.open(tmp_path / "s.png").size
    assert 3 * 512 < width < 3 * 512 + 100
    assert 2 * 512 < height < 2 * 512 + 400


def test_wrong_counts_and_foreign_groups_are_refused(tmp_path: Path) -> None:
    task, group, table = example()
    with pytest.raises(ValueError, match=r"expected 3 .* got \(3, 3, 2, 3\)"):
        write_sample_sheet(tmp_path / "s.png", task, group, table, ADVANTAGES[:2], WEIGHTS)
    with pytest.raises(ValueError, match=r"ordinal 7.* 8 \(group\)"):
        write_sample_sheet(tmp_path / "s.png", task, replace(group, ordinal=8), table, ADVANTAGES, WEIGHTS)


def test_contact_sheet_takes_images_of_different_sizes_and_empty_places(tmp_path: Path) -> None:
    task, group, _ = example()
    cells = (Cell(task.lr), Cell(bicubic_upscale(task.lr, 4), "bicubic"), Cell(group.images[0], "60\n61"), Cell(None))
    write_contact_sheet(tmp_path / "c.png", ("LR", "bicubic", "x" * 200, "HR"), [ContactRow("cat", cells)] * 2)
    assert Image.open(tmp_path / "c.png").width == 12 + 4 * (256 + 6 + 12)
    with pytest.raises(ValueError, match="'cat': expected 2 cells, got 4"):
        write_contact_sheet(tmp_path / "c.png", ("LR", "HR"), [ContactRow("cat", cells)])


def test_bicubic_keeps_a_flat_image_flat() -> None:
    assert (bicubic_upscale(np.full((3, 4, 6), 77, np.uint8), 4) == np.full((3, 16, 24), 77)).all()


def test_sheet_paths_sort_by_step() -> None:
    assert sheet_path(Path("run"), 12, 3) == Path("run/samples/step_000012_ordinal_000003.png")


def _find(sheet: np.ndarray, patch: np.ndarray) -> int:
    """Exact copies of a patch, looked up by its first row."""
    height, width, _ = patch.shape
    hits = 0
    for y, x in np.argwhere((sheet[: -height + 1, : -width + 1] == patch[0, 0]).all(axis=2)):
        hits += bool((sheet[y : y + height, x : x + width] == patch).all())
    return hits
