"""A user's file as a reward: what it gets, and how its mistakes read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards import RewardError, build_reward
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
