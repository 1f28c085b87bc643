"""Carriers refuse what they cannot carry, and a trajectory finds its states."""

import numpy as np
import pytest

from rl.types import RewardTable, TrajectoryRecord


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


def test_a_trained_step_begins_and_ends_at_stored_states() -> None:
    """Steps 2, 3 and 7: states 2, 3, 4, 7, 8 are stored; slot j is from steps[j] to steps[j] + 1."""
    grid = (2, 3, 4, 7, 8)
    states = np.array(grid, np.float32).reshape(5, 1, 1, 1, 1)
    record = TrajectoryRecord((2, 3, 7), grid, states, np.zeros((3, 1)), None)
    assert [(float(record.before(j).item()), float(record.after(j).item())) for j in range(3)] == [
        (2.0, 3.0), (3.0, 4.0), (7.0, 8.0),
    ]  # fmt: skip
    assert np.shares_memory(record.after(0), record.before(1))
