"""Crops for supervised training: a function of photographs and seed, weighted and augmented."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.config.pretrain import PhotoSet
from rl.data.crops import CropSource
from rl.data.photos import load_rgb
from rl.types import U8


@pytest.fixture
def sets(tmp_path: Path) -> list[PhotoSet]:
    """A dark and a bright photograph, drawn 3 to 1."""
    for name, low in (("dark", 0), ("bright", 128)):
        pixels = np.random.default_rng(low).integers(low, low + 100, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return [PhotoSet(path=[str(tmp_path / "dark.png")], weight=3), PhotoSet(path=[str(tmp_path / "bright.png")])]


def test_a_seed_is_one_sequence(sets: list[PhotoSet]) -> None:
    def draw(seed: int) -> list[bytes]:
        source = CropSource(sets, seed)
        return [source.crop(32).tobytes() for _ in range(20)]

    assert draw(1) == draw(1)
    assert len(set(draw(1)) | set(draw(2))) == 40


def test_weights_are_the_shares_of_the_sets(sets: list[PhotoSet]) -> None:
    """3 to 1 over 600 crops: 75 % dark, to 5 % (2.8 standard deviations)."""
    source = CropSource(sets, 0)
    dark = np.mean([source.crop(16).mean() < 110 for _ in range(600)])
    assert dark == pytest.approx(0.75, abs=0.05)


def test_vae_crops_are_sometimes_blurred(sets: list[PhotoSet]) -> None:
    """Share 1 shrinks and enlarges every crop: the same draw without blur has far more fine detail."""

    def detail(share: float) -> float:
        source = CropSource(sets, 3)
        crops = [source.vae_crop(32, share, 4).astype(float) for _ in range(20)]
        return float(np.mean([np.abs(np.diff(crop, axis=1)).mean() for crop in crops]))

    assert detail(1.0) < 0.4 * detail(0.0)


@pytest.fixture
def photos(tmp_path: Path, sets: list[PhotoSet]) -> dict[str, U8]:
    return {name: load_rgb(tmp_path / f"{name}.png") for name in ("dark", "bright")}


def windows(crop: U8, photo: U8) -> list[tuple[int, int]]:
    """Where `crop` occurs in `photo`, pixel by pixel: the corners `(y, x)`."""
    found = (photo[: 1 - len(crop) or None, : 1 - len(crop) or None] == crop[0, 0]).all(-1)
    return [
        (int(y), int(x))
        for y, x in np.argwhere(found)
        if np.array_equal(photo[y : y + len(crop), x : x + len(crop)], crop)
    ]


def test_names_are_the_photographs_in_the_order_of_the_sets(sets: list[PhotoSet]) -> None:
    assert CropSource(sets, 0).names == ["dark", "bright"]
    assert CropSource(sets[::-1], 0).names == ["bright", "dark"]


def test_without_augmentation_a_crop_is_a_window_of_the_named_photograph(
    sets: list[PhotoSet], photos: dict[str, U8]
) -> None:
    """Each of 100 crops is found once in its photograph and nowhere in the other; the corners reach every edge.

    Corners of a crop of 76 in 80 x 90: y in 0..4, x in 0..14, ends included (each missed with probability < 0.2 %).
    """
    source = CropSource(sets, 0, augment=False)
    corners = []
    for _ in range(100):
        name, crop = source.named_crop(76)
        assert crop.shape == (76, 76, 3) and crop.dtype == np.uint8 and crop.flags.c_contiguous
        (corner,) = windows(crop, photos[name])
        corners.append(corner)
        assert all(windows(crop, photo) == [] for other, photo in photos.items() if other != name)
    assert (np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()) == ([0, 0], [4, 14])


def test_with_augmentation_some_crops_are_no_window(sets: list[PhotoSet], photos: dict[str, U8]) -> None:
    """A window stays as it is when not shrunk (1/2), not turned (1/8), not permuted (0.7 + 0.3 / 6): 4.7 % of crops.

    Of 400 that is 19, to 13 (3 standard deviations); the name is still the photograph's, by its brightness.
    """
    source = CropSource(sets, 0)
    unchanged = 0
    for _ in range(400):
        name, crop = source.named_crop(32)
        unchanged += bool(windows(crop, photos[name]))
        assert name == ("dark" if crop.mean() < 110 else "bright")
    assert unchanged == pytest.approx(19, abs=13)


@pytest.mark.parametrize("augment", [True, False])
def test_named_crops_are_the_crops(sets: list[PhotoSet], augment: bool) -> None:
    named, plain = (CropSource(sets, 5, augment=augment) for _ in range(2))
    for _ in range(10):
        np.testing.assert_array_equal(named.named_crop(24)[1], plain.crop(24))
