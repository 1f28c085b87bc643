"""Shares of smooth and detailed pixels: the numbers of the published code, the laws of the measure, and refusals.

`tests/rl/golden/attribute_shares.json` says how its numbers were made. `ARF_SCORES` and `ARF_PUBLISHED` are of the same
commit: `AdaptiveReward.forward` of `GDPOSR/losses/grpo.py` on a random table, whose columns replace the three metrics;
that code returns float32.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.advantages import attribute_aware
from rl.data.attributes import AttributeShares, attribute_shares
from rl.data.photos import load_photos, load_rgb
from rl.types import U8

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "attribute_shares.json").read_text())

# psnr, maniqa, musiq of three groups of six members, and the published advantages under the detail shares below
ARF_SCORES = [
    [[26.33, 0.623, 71.612], [25.934, 0.644, 65.024], [26.622, 0.633, 69.488],
     [25.811, 0.632, 67.637], [25.986, 0.613, 69.713], [25.896, 0.659, 66.621]],
    [[26.019, 0.643, 65.824], [25.415, 0.665, 68.304], [25.918, 0.613, 67.439],
     [26.516, 0.625, 70.873], [25.487, 0.65, 67.065], [26.316, 0.622, 68.561]],
    [[25.838, 0.613, 67.663], [25.162, 0.61, 68.21], [26.995, 0.644, 68.319],
     [25.786, 0.677, 64.916], [25.813, 0.597, 70.148], [26.302, 0.621, 68.223]],
]  # fmt: skip
ARF_RHO_D = np.array([0.66, 0.09, 1.0])
ARF_PUBLISHED = [
    [0.966111, -0.862998, 1.430915, -0.898826, -0.681413, 0.046211],
    [0.132094, -1.147114, -0.133328, 1.361390, -1.048017, 0.834975],
    [-1.231279, -0.860765, 1.602919, 0.288166, 0.288166, -0.087207],
]


def noisy(sigma: float, side: int = 200) -> U8:
    """Gray with Gaussian noise of `sigma` grey levels, the same pattern for every sigma."""
    pattern = np.random.default_rng(1).normal(size=(side, side))
    return np.repeat(np.clip(128.0 + sigma * pattern, 0, 255).round().astype(np.uint8)[None], 3, axis=0)


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: Path(row["image"]).stem)
def test_shares_equal_the_published_code(row: dict[str, Any], request: pytest.FixtureRequest) -> None:
    name = row["image"]
    if name.startswith("skimage:"):
        photo = load_photos([name])[name]
    else:
        photo = load_rgb(request.getfixturevalue("shared_data") / name)
    top, left, height, width = row["crop"]
    hr = photo[top : top + height, left : left + width].transpose(2, 0, 1)
    assert attribute_shares(hr).detail == pytest.approx(row["detail_unswapped"], abs=0.01)
    # the published loader has red and blue swapped
    swapped = attribute_shares(hr[::-1])
    assert swapped.smooth == pytest.approx(row["smooth"], abs=0.01)
    assert swapped.detail == pytest.approx(row["detail"], abs=0.01)


def test_advantages_from_the_shares_equal_the_published_code() -> None:
    fidelity, ones = np.array([True, False, False]), np.ones(3)
    batch = attribute_aware(np.array(ARF_SCORES), ARF_RHO_D, fidelity, ones, ones, 0.0, 1e-8)
    np.testing.assert_allclose(batch.advantages, ARF_PUBLISHED, atol=1e-6)


def test_entropy_by_hand() -> None:
    # one 4 x 4 tile, not enlarged, columns 0 0 0 20: the replicated border makes Sobel's g_x 0 0 80 80 and g_y 0,
    # so two bins hold half of the pixels each: 1 bit * 16 pixels
    hr = np.zeros((3, 4, 4), np.uint8)
    hr[..., 3] = 20
    assert attribute_shares(hr, tile=4, resized=4, threshold=15.99).detail == 1.0
    assert attribute_shares(hr, tile=4, resized=4, threshold=16.0).detail == 0.0, "the threshold itself is smooth"


@pytest.mark.parametrize("side", [(512, 512), (37, 256), (10, 10), (9, 1)])
def test_flat_image_is_smooth(side: tuple[int, int]) -> None:
    for level in (0, 100, 255):
        assert attribute_shares(np.full((3, *side), level, np.uint8)) == AttributeShares(smooth=1.0, detail=0.0)


def test_noise_of_5_grey_levels_is_detail_and_of_1_is_smooth() -> None:
    assert attribute_shares(noisy(1.0)).smooth == 1.0
    assert attribute_shares(noisy(5.0)).detail == 1.0


def test_detail_grows_with_noise() -> None:
    details = [attribute_shares(noisy(sigma)).detail for sigma in (0.0, 1.0, 1.8, 2.0, 2.2, 3.0, 5.0)]
    assert details == sorted(details)
    assert details[0] == 0.0 < details[3] < details[-1] == 1.0


@pytest.mark.parametrize("shape", [(41, 87), (10, 13), (7, 8), (100, 50)])
def test_shares_sum_to_one(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for sigma in (1.9, 2.0, 2.1):
        hr = np.clip(120 + rng.normal(0, sigma, (3, *shape)), 0, 255).round().astype(np.uint8)
        shares = attribute_shares(hr)
        assert shares.smooth + shares.detail == 1.0


def test_shares_count_pixels_not_tiles() -> None:
    # 100 x 60: the left 40 columns are noise, the rest is flat; a step between them would itself be detail
    hr = noisy(0.0, side=100)[..., :60]
    hr[..., :40] = noisy(6.0, side=100)[..., :40]
    assert attribute_shares(hr) == AttributeShares(smooth=0.33, detail=0.67)


def test_edge_strips_need_more_entropy_than_full_tiles() -> None:
    # 22 = 2 * 10 + 2: noise of 5 grey levels makes the full tiles detailed, 400 of 484 px, but not the strips
    assert attribute_shares(noisy(5.0, side=22)).detail == 0.83
    # at the same bits per pixel, so threshold 0.5 * 20, the strips of 40 px follow; the corner of 4 px still cannot
    assert attribute_shares(noisy(5.0, side=22), threshold=10.0).detail == 0.99


def test_a_mirrored_or_turned_image_has_the_same_shares() -> None:
    hr = load_photos(["skimage:astronaut"])["skimage:astronaut"][:250, :250].transpose(2, 0, 1)
    shares = attribute_shares(hr)
    assert attribute_shares(hr[:, :, ::-1]).detail == pytest.approx(shares.detail, abs=0.01)
    assert attribute_shares(np.rot90(hr, axes=(1, 2))).detail == pytest.approx(shares.detail, abs=0.01)


def test_green_weighs_more_than_red_and_red_more_than_blue() -> None:
    noise = noisy(7.0)[0]
    details = []
    for channel in range(3):
        hr = np.full((3, *noise.shape), 128, np.uint8)
        hr[channel] = noise
        details.append(attribute_shares(hr).detail)
    red, green, blue = details
    assert green > red > blue


def test_tile_resize_and_threshold_are_parameters() -> None:
    hr = noisy(2.0)
    assert attribute_shares(hr, threshold=0.0).detail == 1.0
    assert attribute_shares(hr, threshold=1e6).detail == 0.0
    assert attribute_shares(hr, tile=20).detail == 1.0, "a tile of four times the area needs a quarter of the entropy"
    assert attribute_shares(hr, resized=10).detail != attribute_shares(hr).detail


@pytest.mark.parametrize(
    ("hr", "options", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), {}, r"\[3, H, W\], got uint8 \(4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.float32), {}, r"got float32 \(3, 4, 4\)"),
        (np.zeros((3, 0, 4), np.uint8), {}, r"\(3, 0, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), {"tile": 0}, "got tile 0"),
        (np.zeros((3, 4, 4), np.uint8), {"resized": 0}, "resized 0"),
        (np.zeros((3, 4, 4), np.uint8), {"threshold": float("nan")}, "threshold nan"),
    ],
)
def test_refusals_carry_the_values(hr: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attribute_shares(hr, **options)
