"""`psnr_y` and `ssim_y` mean what papers mean: held against the published per-image log of OSEDiff on DRealSR."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.iqa.reward import IqaReward
from rl.data.photos import load_rgb
from rl.types import U8

Pair = tuple[U8, U8, dict[str, str]]


@pytest.fixture(scope="module")
def published(shared_data: Path) -> list[Pair]:
    """OSEDiff's images, their HR images, and the log's row of each."""
    folder = shared_data / "drealsr"
    with open(folder / "published_scores.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    names = sorted(path.name for path in (folder / "osediff").glob("*.png"))
    return [(_read(folder / "osediff" / name), _read(folder / "hr" / name), rows[name]) for name in names]


def _read(path: Path) -> U8:
    return np.ascontiguousarray(load_rgb(path).transpose(2, 0, 1))


def scores(metric: str, pairs: list[Pair], make: Callable[..., Any]) -> np.ndarray:
    reward = IqaReward(make(metric))
    return np.array([float(reward.score(sr[None], hr[:, ::4, ::4], hr, 4)[0]) for sr, hr, _ in pairs])


@pytest.mark.parametrize("metric, tolerance", [("psnr_y", 5e-6), ("ssim_y", 2e-6)])
def test_equal_to_the_published_log(
    metric: str, tolerance: float, published: list[Pair], pyiqa_config: Callable[..., Any]
) -> None:
    """Twelve images; the log has six decimals, and a Y that falls between two grey levels is rounded up on one CPU and
    down on another, which moves SSIM by 1e-6."""
    assert len(published) == 12
    log = [float(row[metric]) for *_, row in published]
    np.testing.assert_allclose(scores(metric, published, pyiqa_config), log, rtol=0, atol=tolerance)


FULL_RANGE_DB = 20 * np.log10(255 / 219)


@pytest.mark.parametrize(
    "metric, protocol, low, high",
    [("psnry", "psnr_y", FULL_RANGE_DB, FULL_RANGE_DB), ("ssim", "ssim_y", 0.0148, 0.0476)],
)
def test_pyiqas_own_names_differ_by_the_range_of_luma(
    metric: str, protocol: str, low: float, high: float, published: list[Pair], pyiqa_config: Callable[..., Any]
) -> None:
    """Full-range luma is 255/219 of the studio range's: 20 log10(255/219) = 1.322 dB; less simple for SSIM."""
    some = [pair for pair in published if pair[2]["image"].startswith(("DSC", "P114"))]
    gap = np.array([float(row[protocol]) for *_, row in some]) - scores(metric, some, pyiqa_config)
    assert len(some) == 5
    assert (gap.min(), gap.max()) == pytest.approx((low, high), abs=2e-4)
