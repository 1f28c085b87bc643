"""How several rewards pick one candidate."""

import numpy as np
import pytest

from rl.advantages import decoupled
from rl.restoration.best_of import combined


def test_by_hand() -> None:
    """Column 1: mean 2, std sqrt(2/3); column 2: 10 times as large and the other way round, so it cancels the first."""
    first = np.array([1.0, 2.0, 3.0])
    z = np.array([-1.0, 0.0, 1.0]) / np.sqrt(2 / 3)
    np.testing.assert_allclose(combined(first[:, None]), z)
    np.testing.assert_allclose(combined(np.stack([first, -10 * first], axis=1)), 0.0, atol=1e-12)
    np.testing.assert_allclose(combined(np.stack([first, [0.0, 0.0, 3.0]], axis=1)).argmax(), 2)


def test_a_reward_that_is_equal_for_all_has_no_say() -> None:
    scores = np.array([[1.0, 0.1 + 0.2], [2.0, 0.1 + 0.2], [0.0, 0.1 + 0.2]])
    np.testing.assert_allclose(combined(scores), combined(scores[:, :1]) / 2)
    np.testing.assert_array_equal(combined(np.full((4, 2), 0.7)), 0.0)


def test_it_orders_as_decoupled_advantages_do_and_units_do_not_matter() -> None:
    scores = np.random.default_rng(0).normal(size=(8, 3))
    advantages = decoupled(scores[None], np.ones(3), np.ones(3), std_floor=0.0, eps=0.0).advantages[0]
    np.testing.assert_array_equal(combined(scores).argsort(), advantages.argsort())
    np.testing.assert_allclose(combined(scores * [1.0, 100.0, 0.01]), combined(scores))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(combined(scores).argsort(), scores[:, 0].argsort())
