"""`lr_consistency`: its cap, its order, and its failures."""

import numpy as np
import pytest
from PIL import Image

from rewards.base import RewardError
from rewards.lr_consistency import LrConsistency
from rewards.sections import LrConsistencySection
from rl.types import U8


def make(**fields: float) -> LrConsistency:
    return LrConsistency(LrConsistencySection(name="lr", **fields))


def resized(image: U8, side: int) -> U8:
    picture = Image.fromarray(image.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1)


@pytest.mark.parametrize("cap_db", [40.0, 60.0])
def test_a_perfect_match_scores_the_cap(photo: U8, cap_db: float) -> None:
    small = photo[:, :32, :32]
    assert make(cap_db=cap_db).score(small[None], small, None, 1) == pytest.approx([cap_db])
    flat = np.full((2, 3, 64, 64), 77, np.uint8)
    assert make(cap_db=cap_db).score(flat, flat[0, :, ::4, ::4], None, 4) == pytest.approx([cap_db] * 2)


def test_a_known_error_in_decibels() -> None:
    images = np.full((1, 3, 32, 32), 110, np.uint8)
    score = make().score(images, np.full((3, 8, 8), 100, np.uint8), None, 4)
    assert score == pytest.approx([20 * np.log10(25.5)], abs=1e-3)


def test_shift_and_colour_cast_cost(photo: U8) -> None:
    lr = resized(photo, 32)
    up = resized(lr, 128)
    cast = np.clip(up.astype(int) + np.array([8, 0, -8])[:, None, None], 0, 255).astype(np.uint8)
    shifted = np.roll(up, 3, axis=2)
    true, moved, tinted = make().score(np.stack([up, shifted, cast]), lr, None, 4)
    assert true > 27 and true > moved + 3 and true > tinted + 1


def test_agrees_with_pillow_up_to_its_rounding(photo: U8) -> None:
    lr = resized(photo, 128)
    assert make().score(photo[None], lr, None, 4)[0] > 55


def test_wrong_sizes_are_refused(photo: U8) -> None:
    with pytest.raises(RewardError, match=r"need lr \(3, 16, 16\), got \(3, 8, 8\)"):
        make().score(photo[None, :, :64, :64], photo[:, :8, :8], None, 4)
