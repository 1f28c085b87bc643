"""A user's file as a reward: what it gets, what it may say about places, and how its mistakes read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards import RewardError, build_reward
from rewards.base import LocalScores
from rewards.sections import PythonRewardSection

Make = Callable[..., Any]


@pytest.fixture
def user(tmp_path: Path) -> Make:
    def make(code: str) -> Any:
        path = tmp_path / "mine.py"
        path.write_text(code)
        return build_reward(PythonRewardSection(name="mine", file=str(path)))

    return make


def test_scores_and_arguments(user: Make, group: Make) -> None:
    reward = user(
        "NEEDS_HR = True\n"
        "def score(images, lr, hr, scale):\n"
        "    assert images.dtype == lr.dtype == hr.dtype == 'uint8' and scale == 4 and lr.shape[1] * 4 == hr.shape[1]\n"
        "    return images.mean(axis=(1, 2, 3))[:, None]\n"
    )
    groups = [group(32, 2), group(32, 3, at=90)]
    assert reward.needs_hr
    for scores, one in zip(reward.score_groups(groups), groups, strict=True):
        np.testing.assert_allclose(scores, one.images.mean(axis=(1, 2, 3)))


@pytest.mark.parametrize(
    "body, message",
    [
        ("return [1.0]", "expected 3 scores"),
        ("return [1.0, 2.0, float('nan')]", "not finite"),
        ("return None", "expected 3 scores"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("images[0] = 0", "read-only"),
        ("return [[1, 2], [3]]", "ValueError"),
    ],
)
def test_mistakes_are_errors_never_numbers(user: Make, group: Make, body: str, message: str) -> None:
    one = group(32, 3)
    with pytest.raises(RewardError, match=message):
        user(f"def score(images, lr, hr, scale):\n    {body}\n").score(one.images.copy(), one.lr, one.hr, 4)


def test_load_errors(user: Make, tmp_path: Path, group: Make) -> None:
    with pytest.raises(RewardError, match="has no score"):
        user("x = 1\n")
    with pytest.raises(RewardError, match="importing.*ModuleNotFoundError"):
        user("import no_such_module_anywhere\n")
    with pytest.raises(RewardError, match="does not exist"):
        build_reward(PythonRewardSection(name="mine", file=str(tmp_path / "absent.py")))
    one = group(32)
    with pytest.raises(RewardError, match="NEEDS_HR"):
        user("NEEDS_HR = True\ndef score(images, lr, hr, scale): return [0] * 3\n").score(one.images, one.lr, None, 4)


def test_the_failing_group_is_named(user: Make, group: Make) -> None:
    reward = user("def score(images, lr, hr, scale): return [0.0] * 2\n")
    with pytest.raises(RewardError) as caught:
        reward.score_groups([group(32, 2), group(32, 3)])
    assert caught.value.groups == (1,)


MAPS = """
def score(images, lr, hr, scale):
    light = images.mean(axis=1)
    return light.max(axis=(1, 2)), {maps}
"""


def test_scores_with_maps_of_any_resolution(user: Make, group: Make) -> None:
    """The scores are what the file returns, whatever its maps say; a cell has the mean of its part of the map."""
    one = group(32, 2)
    light = one.images.mean(axis=1)
    for maps, cells in (("light", light), ("light[:, ::2, ::4]", light[:, ::2, ::4].repeat(2, 1).repeat(4, 2))):
        reward = user(MAPS.format(maps=maps))
        (found,) = reward.score_locally([one])
        assert isinstance(found, LocalScores)
        np.testing.assert_array_equal(found.scores, light.max(axis=(1, 2)))
        np.testing.assert_array_equal(reward.score_groups([one])[0], found.scores)
        means = cells.reshape(2, 2, 16, 2, 16).mean(axis=(2, 4))
        np.testing.assert_allclose(found.in_cells("mine", (32, 32), 16), means)


def test_a_pair_of_scores_is_no_map(user: Make, group: Make) -> None:
    reward = user("def score(images, lr, hr, scale): return 0.25, 0.75\n")
    (found,) = reward.score_locally([group(32, 2)])
    assert isinstance(found, np.ndarray) and found.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    "maps, message",
    [
        ("light[0]", r"expected a map \[h, w\] per image, 3 in all, got \(32, 32\)"),
        ("light[:2]", r"3 in all, got \(2, 32, 32\)"),
        ("images", r"3 in all, got \(3, 3, 32, 32\)"),
        ("light[:, :0]", r"3 in all, got \(3, 0, 32\)"),
        ("None", r"3 in all, got \(\)"),
        ("[*light[:2], light[2] * float('nan')]", r"\b1024 of 3072 values of its map are not finite"),
        ("light * float('inf')", r"\b3072 of 3072 values of its map are not finite"),
        ("'no map'", "could not convert string to float"),
    ],
)
def test_a_wrong_map_is_an_error_never_a_number(user: Make, group: Make, maps: str, message: str) -> None:
    one = group(32, 3)
    reward = user(MAPS.format(maps=maps))
    with pytest.raises(RewardError, match=f"reward 'mine': .*{message}"):
        reward.score_locally([one])[0].in_cells("mine", one.size, 16)
