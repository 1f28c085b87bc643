"""`lr_consistency`: its cap, its order, its map, and its failures."""

import numpy as np
import pytest
from PIL import Image

from rewards.base import RewardError, RewardInput
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


def test_a_cell_holds_the_psnr_of_its_lr_pixels(photo: U8) -> None:
    """An image of one grey level, smaller by scale 4: 16 pixels are 4 x 4 of LR. The last cells have fewer."""
    lr = photo[:, 100:110, 200:207]
    images = np.stack([np.full((3, 40, 28), level, np.uint8) for level in (90, 160)])
    (found,) = make().score_locally([RewardInput(images, lr, None, 4)])
    cells = found.in_cells("lr", (40, 28), 16)
    assert cells.shape == (2, 3, 2)
    for member, level in enumerate((90, 160)):
        for row in range(3):
            for column in range(2):
                block = lr[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                psnr = -10 * np.log10(((block / 255 - level / 255) ** 2).mean())
                assert cells[member, row, column] == pytest.approx(psnr, abs=1e-4)


def test_one_cell_is_the_score_and_a_perfect_cell_the_cap(photo: U8) -> None:
    lr = np.full((3, 12, 8), 77, np.uint8)
    lr[:, 4:] = photo[:, 104:112, 200:208]
    images = np.full((1, 3, 48, 32), 77, np.uint8)
    (found,) = make(cap_db=45).score_locally([RewardInput(images, lr, None, 4)])
    np.testing.assert_array_equal(found.scores, make(cap_db=45).score(images, lr, None, 4))
    np.testing.assert_allclose(found.in_cells("lr", (48, 32), 48).ravel(), found.scores, rtol=1e-12)
    cells = found.in_cells("lr", (48, 32), 16)[0]
    assert cells[0].tolist() == pytest.approx([45, 45]) and cells[1:].max() < 25
