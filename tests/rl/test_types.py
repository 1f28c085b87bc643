"""A reward table refuses what is not a score."""

import numpy as np
import pytest

from rl.types import RewardTable


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_by_reward(bad: float) -> None:
    scores = np.ones((4, 3))
    scores[2, 1] = bad
    with pytest.raises(ValueError, match=r"RewardTable 7: non-finite scores of \['musiq'\]; drop the group"):
        RewardTable(7, ("fsim", "musiq", "niqe"), scores, (0.1, 0.1, 0.1))


@pytest.mark.parametrize("shape", [(4, 2), (4,), (4, 3, 1)])
def test_columns_must_match_the_names(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected scores \[G, 3\]"):
        RewardTable(0, ("a", "b", "c"), np.ones(shape), (0.1, 0.1, 0.1))
