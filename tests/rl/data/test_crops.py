"""Crops for supervised training: a function of photographs and seed, weighted and augmented."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.config.pretrain import PhotoSet
from rl.data.crops import CropSource


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
