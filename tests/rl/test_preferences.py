"""Pairs of a group: who is preferred, and what a carrier of pairs refuses."""

import numpy as np
import pytest
import torch

from rl.objectives.diffusion_dpo import stitched
from rl.preferences import best_and_worst, train_item
from rl.types import PreferencePairs, RolloutGroup, SRTask, TrainGroup

MEMBERS = 4
TASK = SRTask(7, "photo", np.zeros((3, 8, 8), np.uint8), None, 4, 0)
GROUP = RolloutGroup(
    7, "photo", 2, "digest", tuple(range(MEMBERS)), np.zeros((MEMBERS, 4, 2, 2), np.float32),
    np.zeros((MEMBERS, 3, 32, 32), np.uint8),
)  # fmt: skip


def test_the_best_member_wins_over_the_worst() -> None:
    pairs = best_and_worst(TASK, GROUP, np.array([0.1, 1.5, -1.6, 0.0]))
    assert (pairs.winners.tolist(), pairs.losers.tolist(), pairs.weights.tolist()) == ([1], [2], [1.0])
    assert pairs.task is TASK and pairs.group is GROUP


def test_the_first_of_equals_is_taken() -> None:
    """As torch's and numpy's argmax: members 1 and 3 tie at the top, 0 and 2 at the bottom; all tie in a group whose
    rewards do, where the pair is the first member and itself, whose loss has no gradient."""
    pairs = best_and_worst(TASK, GROUP, np.array([-1.0, 1.0, -1.0, 1.0]))
    assert (pairs.winners.tolist(), pairs.losers.tolist()) == ([1], [0])
    tied = best_and_worst(TASK, GROUP, np.zeros(MEMBERS))
    assert tied.winners.tolist() == tied.losers.tolist() == [0]


def test_a_pair_takes_the_best_and_the_worst_member_of_every_cell() -> None:
    advantages = np.array([[[0.0, 3.0]], [[1.0, -1.0]], [[-2.0, 1.0]], [[0.5, 0.0]]])
    pair = best_and_worst(TASK, GROUP, advantages)
    assert (pair.winners.tolist(), pair.losers.tolist()) == ([[[1, 0]]], [[[2, 1]]])
    constant = best_and_worst(TASK, GROUP, np.broadcast_to([[[0.1]], [[0.7]], [[-0.2]], [[0.0]]], (4, 2, 2)))
    assert (constant.winners == 1).all() and (constant.losers == 2).all()


def test_stitching_takes_every_square_from_its_member() -> None:
    """Members are their own number, so the stitched latent is the map of members, enlarged and cut at the edges."""
    members = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 4, 6)
    cells = np.array([[2, 0], [1, 2]])
    expected = torch.tensor([[2, 2, 2, 2, 0, 0]] * 4)
    assert torch.equal(stitched(members, cells, 4), expected.expand(2, 4, 6).float())
    expected = torch.tensor([[2, 2, 2, 0, 0, 0]] * 3 + [[1, 1, 1, 2, 2, 2]])
    assert torch.equal(stitched(members, cells, 3), expected.expand(2, 4, 6).float())


def test_a_live_group_becomes_what_the_objective_trains_on() -> None:
    advantages = np.array([0.1, 1.5, -1.6, 0.0], np.float32)
    members = train_item(TASK, GROUP, advantages, pairs=False)
    assert isinstance(members, TrainGroup) and members.advantages.dtype == np.float64
    np.testing.assert_array_equal(members.advantages, advantages)
    pair = train_item(TASK, GROUP, advantages, pairs=True)
    assert isinstance(pair, PreferencePairs) and pair.winners.tolist() == [1]


@pytest.mark.parametrize(
    ("winners", "losers", "weights", "message"),
    [
        ([0, 1], [2], [1.0], r"winners and losers \[P >= 1\] .* got shapes"),
        ([], [], [], r"winners and losers \[P >= 1\] .* got shapes"),
        ([[0]], [[1]], [[1.0]], r"winners and losers \[P >= 1\] .* got shapes"),
        ([0], [4], [1.0], r"expected members 0 to 3, got \[0\], \[4\]"),
        ([-1], [0], [1.0], r"expected members 0 to 3, got \[-1\], \[0\]"),
        ([0, 1], [2, 3], [2.0, -1.0], r"weights at least 0, not all 0, got \[ 2. -1.\]"),
        ([0], [2], [0.0], r"weights at least 0, not all 0, got \[0.\]"),
        ([0], [2], [np.nan], "weights at least 0, not all 0"),
    ],
)
def test_pairs_that_are_not_of_the_group_are_refused(
    winners: list[int], losers: list[int], weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PreferencePairs(TASK, GROUP, np.array(winners, int), np.array(losers, int), np.array(weights))
