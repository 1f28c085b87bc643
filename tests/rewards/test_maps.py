"""Maps of pyiqa's metrics: their mean is the score, and they change where the image does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.base import Layer, LocalReward, LocalScores, RewardError, RewardInput
from rewards.iqa.catalog import MAPPED
from rewards.iqa.reward import IqaReward
from rewards.sections import LrConsistencySection, NoiseSection, PyiqaSection, PythonRewardSection, SharpnessSection
from rl.types import F64, U8

Make = Callable[..., Any]
DECIBEL, SINGLE, DOUBLE = 1e-5, 1e-6, 1e-12
"""How far the mean of a map may be from the score, which the metric computes in dB of float32, float32, or float64."""

CASES: list[tuple[str, dict[str, Any], int, float]] = [
    ("psnr", {}, 64, DECIBEL),
    ("psnr", {"crop_border": 5, "data_range": 255.0, "eps": 1e-3}, 64, DECIBEL),
    ("psnry", {}, 64, DECIBEL),
    ("psnr_y", {}, 64, DECIBEL),
    ("ssim", {}, 64, DOUBLE),
    ("ssim", {"crop_border": 5}, 64, DOUBLE),
    ("ssim", {"crop_border": 5, "downsample": True}, 452, DOUBLE),
    ("ssimc", {}, 64, DOUBLE),
    ("ssim_y", {}, 64, DOUBLE),
    ("gmsd", {}, 64, SINGLE),
    ("gmsd", {"test_y_channel": False}, 65, SINGLE),
    ("fsim", {}, 64, SINGLE),
    ("fsim", {"chromatic": False, "scales": 3}, 64, SINGLE),
    ("fsim", {}, 450, SINGLE),
    ("vsi", {}, 64, DOUBLE),
    ("vsi", {"c1": 2.0, "beta": 0.1, "sigma_f": 1.0, "data_range": 2.0}, 64, DOUBLE),
    ("vsi", {}, 450, DOUBLE),
    ("stlpips", {"pretrained": False}, 96, SINGLE),
]
"""Metric, options, width, tolerance; from 384 pixels on, FSIM, VSI and a downsampling SSIM see halved images."""
NAMES = [f"{name}-{'-'.join(options)}-{side}" for name, options, side, _ in CASES]


def reward(metric: str, options: dict[str, Any] | None = None) -> IqaReward:
    import torch

    torch.manual_seed(3)  # for the networks without weights
    return IqaReward(PyiqaSection(name=metric, options=options or {}))


def local(scorer: IqaReward, groups: Sequence[RewardInput]) -> list[LocalScores]:
    found = scorer.score_locally(groups)
    assert all(isinstance(one, LocalScores) for one in found)
    return [one for one in found if isinstance(one, LocalScores)]


def wide(one: RewardInput) -> RewardInput:
    """Seven eighths of the rows, so that rows and columns cannot be confused."""
    assert one.hr is not None
    rows = one.size[0] * 7 // 8
    return RewardInput(one.images[:, :, :rows], one.lr, one.hr[:, :rows], one.scale)


def whole(found: LocalScores, size: tuple[int, int]) -> F64:
    """`[G]`: the local score of one cell that covers the image."""
    cells = found.in_cells("whole", size, max(size))
    assert cells.shape[1:] == (1, 1)
    return cells[:, 0, 0]


def cells_of(scorer: IqaReward, hr: U8, images: Sequence[U8], cell_px: int) -> F64:
    (found,) = local(scorer, [RewardInput(np.stack(images), hr[:, ::4, ::4], hr, 4)])
    return found.in_cells("cells", hr.shape[1:], cell_px)


def damaged(hr: U8, row: int, column: int, side: int = 16) -> U8:
    """Noise of 20 grey levels in one block."""
    image = hr.astype(float)
    noise = 20 * np.random.default_rng(1).standard_normal((3, side, side))
    image[:, row : row + side, column : column + side] += noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def rings(rows: int, columns: int, block: tuple[int, int, int]) -> F64:
    """How many cells away each cell is from a block of cells (first row, first column, side); 0 inside."""
    row, column, side = block
    r, c = np.indices((rows, columns))
    return np.maximum.reduce([row - r, r - row - side + 1, column - c, c - column - side + 1, np.zeros_like(r)])


@pytest.mark.parametrize("metric, options, side, tolerance", CASES, ids=NAMES)
def test_scores_are_the_metrics_own_and_the_mean_of_the_map(
    metric: str, options: dict[str, Any], side: int, tolerance: float, group: Make
) -> None:
    scorer = reward(metric, options)
    groups = [wide(group(side, 2, at=0)), wide(group(side, 1, at=452 - side))]
    scores, found = scorer.score_groups(groups), local(scorer, groups)
    for column, one, task in zip(scores, found, groups, strict=True):
        np.testing.assert_array_equal(one.scores, column)
        if metric != "gmsd":
            np.testing.assert_allclose(whole(one, task.size), column, rtol=0, atol=tolerance)


def test_gmsd_is_minus_the_deviation_of_its_map(group: Make) -> None:
    """The map's mean is another number: near 1 where the score is near 0."""
    one = wide(group(64, 3))
    (found,) = local(reward("gmsd"), [one])
    np.testing.assert_allclose(found.scores, -found.layers[0].values.std(axis=(1, 2), ddof=1), rtol=SINGLE)
    assert (found.scores < 0).all() and (whole(found, one.size) > 0.8).all()


def test_lpips_is_minus_the_sum_of_the_means_of_its_layers(lpips_squeeze_file: Path, group: Make) -> None:
    options = {"net": "squeeze", "pnet_rand": True, "pretrained_model_path": str(lpips_squeeze_file)}
    scorer, one = reward("lpips", options), wide(group(96, 2))
    (found,) = local(scorer, [one])
    np.testing.assert_array_equal(found.scores, scorer.score_groups([one])[0])
    np.testing.assert_allclose(whole(found, one.size), found.scores, atol=SINGLE)
    assert len(found.layers) == 7 and (found.scores < -0.01).all()
    weighted = reward("lpips", options | {"semantic_weight_layer": 2})
    np.testing.assert_array_equal(weighted.score_locally([one])[0], weighted.score_groups([one])[0])


@pytest.mark.parametrize(
    "metric, best", [("psnr", 80), ("ssim", 1), ("ssimc", 1), ("gmsd", 1), ("fsim", 1), ("vsi", 1)]
)
def test_every_cell_of_a_perfect_image_is_at_its_best(metric: str, best: float, crop: Make) -> None:
    """Weighted means too, whatever their weights: a weight says what a loss costs, not what a place is worth."""
    hr = crop(64)
    np.testing.assert_allclose(cells_of(reward(metric), hr, [hr], 16), best, rtol=1e-6)


REACH: list[tuple[str, dict[str, Any], int, int]] = [
    ("psnr", {}, 96, 0),
    ("psnr", {"crop_border": 7}, 96, 0),
    ("psnry", {}, 96, 0),
    ("psnr_y", {}, 96, 0),
    ("ssim", {}, 96, 5),
    ("ssim", {"crop_border": 7}, 96, 5),
    ("ssim", {"downsample": True}, 400, 10),
    ("ssimc", {}, 96, 5),
    ("ssim_y", {}, 96, 5),
    ("gmsd", {}, 96, 2),
]
"""Metric, options, side, and how many pixels away a pixel still changes the map: SSIM's window has 11 samples, of two
pixels where it halves the image; GMSD's gradient has 3 samples of two pixels."""


@pytest.mark.parametrize("metric, options, side, reach", REACH)
def test_a_defect_costs_its_cell_and_reaches_no_farther_than_the_window(
    metric: str, options: dict[str, Any], side: int, reach: int, crop: Make
) -> None:
    hr, scorer = crop(side), reward(metric, options)
    image = damaged(hr, 32, 48)
    perfect, found = cells_of(scorer, hr, [hr, image], 16)
    loss = perfect - found
    assert loss[2, 3] > 0.01 * perfect[2, 3] and loss[2, 3] == loss.max()
    perfect, found = cells_of(scorer, hr, [hr, image], 1)
    rows, columns = np.nonzero(np.abs(found - perfect) > 1e-9)
    assert (rows.min(), rows.max()) == (32 - reach, 47 + reach)
    assert (columns.min(), columns.max()) == (48 - reach, 63 + reach)


@pytest.mark.parametrize("metric, at_least", [("fsim", 0.1), ("vsi", 0.02)])
@pytest.mark.parametrize("cell", [(0, 0), (3, 4), (5, 2)])
def test_a_weighted_mean_changes_elsewhere_by_a_thousandth_of_what_a_defect_costs(
    metric: str, at_least: float, cell: tuple[int, int], crop: Make
) -> None:
    """No window bounds it: phase congruency has a threshold from the whole image, saliency the whole image's range,
    and weights their mean."""
    hr = crop(128)
    perfect, found = cells_of(reward(metric), hr, [hr, damaged(hr, 16 * cell[0], 16 * cell[1])], 16)
    loss = perfect - found
    assert loss[cell] > at_least and loss[cell] == loss.max()
    assert np.abs(loss[rings(8, 8, (*cell, 1)) > 1]).max() < 1e-3 * loss[cell]


def test_lpips_finds_a_defect_and_ends_with_its_receptive_field(lpips_squeeze_file: Path, photo: U8) -> None:
    """SqueezeNet's last layer sees 103 pixels around a sample; its samples have 16 pixels and are taken to tile the
    image evenly, which moves them by up to one."""
    options = {"net": "squeeze", "pnet_rand": True, "pretrained_model_path": str(lpips_squeeze_file)}
    perfect, found = cells_of(reward("lpips", options), photo, [photo, damaged(photo, 96, 64, side=32)], 32)
    assert (perfect == 0).all() and found[3, 2] == found.min() < -0.1
    away = rings(16, 16, (3, 2, 1))
    assert np.abs(found[32 * (away - 1) > 103 + 16]).max() < 1e-6


def test_an_image_in_one_colour_has_no_salient_place() -> None:
    """VSI gives it 1, eps / eps; so does every cell."""
    grey = np.full((3, 32, 32), 90, np.uint8)
    scorer = reward("vsi")
    assert scorer.score(grey[None], grey[:, ::4, ::4], grey, 4) == [1.0]
    np.testing.assert_array_equal(cells_of(scorer, grey, [grey], 16), np.ones((1, 2, 2)))


def test_a_local_score_that_is_not_finite_is_an_error() -> None:
    """The map is finite, what follows its mean is not: 10 log10 of 0."""
    found = LocalScores(np.zeros(1), (Layer(np.eye(2)[None]),), lambda mse: -10 * np.log10(mse))
    message = "reward 'r': 2 of 4 local scores of its map are not finite"
    with pytest.raises(RewardError, match=message), np.errstate(divide="ignore"):
        found.in_cells("r", (8, 8), 4)


def test_a_metric_without_a_map_answers_with_scores(group: Make) -> None:
    scorer, groups = reward("nlpd"), [group(64, 2), group(64, 1)]
    assert isinstance(scorer, LocalReward)
    for plain, expected in zip(scorer.score_locally(groups), scorer.score_groups(groups), strict=True):
        np.testing.assert_array_equal(plain, expected)


def test_sections_know_who_has_a_map() -> None:
    from rewards.iqa.maps import MAPS

    assert set(MAPS) == MAPPED

    def has(metric: str, **options: Any) -> bool:
        return PyiqaSection(name="r", metric=metric, options=options).has_map

    assert all(has(metric) for metric in {*(case[0] for case in CASES), "lpips", "lpips-vgg", "stlpips-vgg"})
    assert not any(map(has, ("lpips+", "lpips-vgg+", "ms_ssim", "dists", "nlpd", "musiq", "niqe")))
    assert not has("lpips", semantic_weight_layer=2) and not has("lpips", lpips=False)
    assert has("lpips+", semantic_weight_layer=-1) and has("lpips", net="vgg")
    assert all(kind(name="r").has_map is True for kind in (LrConsistencySection, SharpnessSection, NoiseSection))
    assert PythonRewardSection(name="r", file="mine.py").has_map is None
