"""`sharpness` and `noise` on images whose gradient or noise is known, and their maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import convolve, gaussian_filter

from rewards import build_reward
from rewards.base import LocalReward, RewardError, RewardInput
from rewards.sections import NoiseSection, SharpnessSection
from rl.types import F64, U8

Make = Callable[..., Any]
LR = np.zeros((3, 1, 1), np.uint8)
SOBEL = np.outer([1, 2, 1], [-1, 0, 1]) / 8
IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])


def built(kind: str) -> LocalReward:
    reward = build_reward(SharpnessSection(name=kind) if kind == "sharpness" else NoiseSection(name=kind))
    assert isinstance(reward, LocalReward)
    return reward


def score(kind: str, *images: F64) -> F64:
    batch = np.stack([np.broadcast_to(np.clip(np.rint(image), 0, 255), (3, *image.shape[-2:])) for image in images])
    return built(kind).score(batch.astype(np.uint8), LR, None, 4)


def test_ramps_have_the_sharpness_of_their_slope_and_no_noise() -> None:
    y, x = np.indices((24, 40)).astype(float)
    ramps = (x, 5 * y, 3 * x + 4 * y, 0 * x + 90)
    np.testing.assert_allclose(score("sharpness", *ramps), [1, 5, 5, 0], rtol=1e-6)
    np.testing.assert_array_equal(score("noise", *ramps), np.zeros(4))


@pytest.mark.parametrize("sigma", [2.0, 6.0, 15.0])
def test_noise_is_minus_the_standard_deviation_of_white_noise(sigma: float) -> None:
    """On a ramp; within 2 % on 256 x 256 x 3 pixels. Rounding to grey levels adds 1/12 to the variance."""
    rng = np.random.default_rng(4)
    ramp = 80 + np.indices((256, 256))[1] / 4
    image = ramp + sigma * rng.standard_normal((3, 256, 256))
    assert score("noise", image)[0] == pytest.approx(-np.sqrt(sigma**2 + 1 / 12), rel=0.02)


def test_one_bright_pixel() -> None:
    """In 5 x 5 pixels every place of the 3 x 3 sees it once: Sobel's squares sum to 24 / 64, Immerkaer's mask to 16."""
    spot = np.zeros((5, 5))
    spot[2, 2] = 80
    assert score("sharpness", spot)[0] == pytest.approx(80 * np.sqrt(24 / 64 / 9))
    assert score("noise", spot)[0] == pytest.approx(-np.sqrt(np.pi / 2) / 6 * 16 * 80 / 9)


def test_both_equal_their_masks(photo: U8) -> None:
    """scipy's convolution with the masks as published, channel by channel, without the border."""
    image = photo[:, 40:87, 200:264]
    inner = np.s_[1:-1, 1:-1]
    squared = [
        (convolve(one.astype(float), SOBEL) ** 2 + convolve(one.astype(float), SOBEL.T) ** 2)[inner] for one in image
    ]
    response = [np.abs(convolve(one.astype(float), IMMERKAER))[inner].sum() for one in image]
    height, width = image.shape[1:]
    sigma = np.sqrt(np.pi / 2) / (6 * (width - 2) * (height - 2)) * np.array(response)
    assert score("sharpness", image)[0] == pytest.approx(np.sqrt(np.mean(squared)), rel=1e-6)
    assert score("noise", image)[0] == pytest.approx(-sigma.mean(), rel=1e-6)


def test_blur_and_noise_are_told_apart(photo: U8) -> None:
    true = photo[:, 60:188, 150:278].astype(float)
    blurred = gaussian_filter(true, (0, 1.5, 1.5))
    noisy = true + 12 * np.random.default_rng(0).standard_normal(true.shape)
    sharp, soft, grainy = score("sharpness", true, blurred, noisy)
    assert soft < 0.7 * sharp < sharp < grainy
    clean, smooth, dirty = score("noise", true, blurred, noisy)
    assert dirty < clean - 5 and clean < smooth < 0


@pytest.mark.parametrize("kind", ["sharpness", "noise"])
def test_maps_are_the_score_in_parts(kind: str, group: Make) -> None:
    reward, groups = built(kind), [group(40, 3), group(40, 1, at=90)]
    for found, scores, one in zip(reward.score_locally(groups), reward.score_groups(groups), groups, strict=True):
        np.testing.assert_array_equal(found.scores, scores)
        np.testing.assert_allclose(found.in_cells(kind, one.size, 40).ravel(), scores, rtol=1e-12)
        assert (found.in_cells(kind, one.size, 16).shape) == (len(scores), 3, 3)


@pytest.mark.parametrize("kind, sign", [("sharpness", 1), ("noise", -1)])
def test_a_change_reaches_one_pixel_beyond_its_block(kind: str, sign: int, crop: Make) -> None:
    hr = crop(64)
    image = hr.astype(float)
    image[:, 16:32, 32:48] += 20 * np.random.default_rng(1).standard_normal((3, 16, 16))
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    (found,) = built(kind).score_locally([RewardInput(np.stack([hr, image]), hr[:, ::4, ::4], None, 4)])
    before, after = found.in_cells(kind, (64, 64), 16)
    assert sign * (after - before)[1, 2] > 5 and np.abs(after - before).argmax() == 4 * 1 + 2
    before, after = found.in_cells(kind, (64, 64), 1)
    rows, columns = np.nonzero(after != before)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 32, 31, 48)


@pytest.mark.parametrize("kind", ["sharpness", "noise"])
def test_images_smaller_than_the_mask_are_refused(kind: str) -> None:
    images = np.zeros((2, 3, 8, 2), np.uint8)
    with pytest.raises(RewardError, match=rf"'{kind}'.*at least 3 pixels, got images \(2, 3, 8, 2\)"):
        built(kind).score_groups([RewardInput(images, LR, None, 4)])
