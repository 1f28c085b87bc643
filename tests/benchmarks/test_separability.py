"""Levels counted by hand, and the figure's order on two conflicting rewards."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from separability import distinct_levels, plot_separability, separability

TWO = np.ones(2)


def test_distinct_levels_by_hand() -> None:
    # from below: 0 opens, 0.1 is not more than 0.1 above it, 0.15 opens, 0.2 and 0.25 stay, 1 opens
    assert distinct_levels(np.array([1.0, 0.0, 0.1, 0.2, 0.15, 0.25]), 0.1) == 3
    assert distinct_levels(np.zeros(5), 0.1) == 1


def test_distinct_levels_is_the_largest_pairwise_distinct_subset() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=7)
        best = max(
            size
            for size in range(1, 8)
            for subset in combinations(values, size)
            if all(abs(a - b) > 0.4 for a, b in combinations(subset, 2))
        )
        assert distinct_levels(values, 0.4) == best


def test_decoupled_separates_more_where_one_reward_drowns_the_other() -> None:
    # reward 0 is coarse and differs widely between LR images, reward 1 is fine: the scalar sum hears reward 0 alone
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 3, size=(40, 16)) * 0.1 + rng.normal(0.0, 1.0, size=(40, 1))
    scores = np.stack([coarse, 0.001 * rng.normal(size=(40, 16))], axis=2)
    rows = {(row.aggregation, row.group_size): row for row in separability(scores, TWO, TWO, std_floor=0.0)}
    assert len(rows) == 30
    assert rows["decoupled", 16].distinct_levels > 2 * rows["scalarised", 16].distinct_levels
    assert rows["decoupled", 12].mean_gap > 3 * rows["scalarised", 12].mean_gap
    assert rows["decoupled", 16].distinct_levels > rows["decoupled", 4].distinct_levels


def test_batch_standardised_gaps_stay_under_the_bound_that_the_module_states() -> None:
    scores = np.linspace(0.0, 1.0, 12)[None, :, None] * np.ones((5, 1, 1))
    (row,) = (
        row
        for row in separability(scores, np.ones(1), np.ones(1), group_sizes=(12,), eps=0.0)
        if row.aggregation == "decoupled"
    )
    # evenly spaced members attain 2/sqrt(3) sqrt(13/12) times the group's std; the batch's is 59/55 of its square
    assert row.mean_gap == pytest.approx(2 / np.sqrt(3) * np.sqrt(13 / 12) * np.sqrt(59 / 55))
    assert row.mean_gap < 1.26


def test_too_few_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"M >= 16.*\(3, 12, 2\)"):
        separability(np.zeros((3, 12, 2)), TWO, TWO)


def test_plot_writes_a_png(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=(4, 16, 2))
    plot_separability(tmp_path / "figures" / "s.png", separability(scores, TWO, TWO))
    assert (tmp_path / "figures" / "s.png").read_bytes().startswith(b"\x89PNG")
