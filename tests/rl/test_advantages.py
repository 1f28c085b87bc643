"""Advantages: hand-computed numbers, the laws that each aggregation obeys, and what happens without any variance.

`test_attribute_aware.py` has those of GDPO-SR's aggregation, which reads the image.
"""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rl.advantages import AdvantageBatch, decoupled, scalarised, scalarised_by_group, to_reward_weight
from rl.config.advantage import AnyAdvantage
from rl.types import F64

ONE = np.ones(1)
TWO = np.ones(2)
seeds = st.integers(0, 2**32 - 1)
AGGREGATIONS = {"decoupled": decoupled, "scalarised": scalarised, "scalarised_by_group": scalarised_by_group}


def rollouts(seed: int, groups: int = 4, members: int = 6, rewards: int = 2) -> F64:
    return np.random.default_rng(seed).normal(size=(groups, members, rewards)) * [[[0.02] * (rewards - 1) + [30.0]]]


def test_decoupled_by_hand() -> None:
    # group 0: scores 1 2 3, mean 2, unbiased std 1           -> z = -1 0 1
    # group 1: scores 0 0 3, mean 1, std sqrt((1+1+4)/2)=1.7321 -> z = -0.57735 -0.57735 1.15470
    # batch: mean 0, unbiased std sqrt((1+0+1 + 1/3+1/3+4/3) / 5) = sqrt(4/5) = 0.894427
    scores = np.array([[[1.0], [2.0], [3.0]], [[0.0], [0.0], [3.0]]])
    batch = decoupled(scores, ONE, ONE, 0.0, 0.0)
    z = np.array([[-1.0, 0.0, 1.0], [-0.5773503, -0.5773503, 1.1547005]])
    np.testing.assert_allclose(batch.per_reward[..., 0], z, atol=1e-7)
    np.testing.assert_allclose(batch.advantages, z / 0.8944272, atol=1e-6)
    assert not batch.zero_variance.any()


def test_decoupled_fuses_weighted_z_scores() -> None:
    # z of reward 0 = -1 0 1; z of reward 1 (30 10 20: mean 20, std 10) = 1 -1 0; weights 1 and 2
    # A = -1+2, 0-2, 1+0 = 1 -2 1; batch std sqrt((1+4+1)/2) = sqrt(3)
    scores = np.array([[[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]]])
    batch = decoupled(scores, np.array([1.0, 2.0]), TWO, 1e-3, 0.0)
    np.testing.assert_allclose(batch.advantages, [np.array([1.0, -2.0, 1.0]) / np.sqrt(3.0)], atol=1e-12)


def test_decoupled_eps_is_added_after_the_floor_was_asked() -> None:
    # std is 1 in the unit of scale 1: a floor of exactly 1 does not hold it back; eps 1 then halves z: -0.5 0 0.5
    scores = np.array([[[1.0], [2.0], [3.0]]])
    batch = decoupled(scores, ONE, ONE, 1.0, 1.0)
    assert not batch.zero_variance.any()
    np.testing.assert_allclose(batch.per_reward[0, :, 0], [-0.5, 0.0, 0.5])
    # batch: std 0.5, so 0.5 / (0.5 + 1)
    np.testing.assert_allclose(batch.advantages, [[-1 / 3, 0.0, 1 / 3]])


def test_scalarised_by_hand() -> None:
    # sums: group 0: 1 3 (mean 2), group 1: 10 14 (mean 12); all four: mean 7, biased var (36+16+9+49)/4 = 27.5
    scores = np.array([[[1.0], [3.0]], [[10.0], [14.0]]])
    batch = scalarised(scores, ONE, ONE, 0.0, 0.0)
    np.testing.assert_allclose(batch.advantages, np.array([[-1.0, 1.0], [-2.0, 2.0]]) / np.sqrt(27.5))


def test_scalarised_by_group_by_hand() -> None:
    # sums with weights 1 and 2 in units of 1 and 10
    # group 0: 1+2, 3+2, 5+8 = 3 5 13, mean 7, unbiased var (16+4+36)/2 = 28
    # group 1: 0+0, 2+0, 4+0 = 0 2 4, mean 2, var 4: a quieter group has advantages as large
    scores = np.array([[[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]], [[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]])
    weights, scales = np.array([1.0, 2.0]), np.array([1.0, 10.0])
    batch = scalarised_by_group(scores, weights, scales, 1e-3, 0.0)
    expected = np.array([[-4.0, -2.0, 6.0] / np.sqrt(28.0), [-1.0, 0.0, 1.0]])
    np.testing.assert_allclose(batch.advantages, expected, atol=1e-12)
    np.testing.assert_array_equal(batch.zero_variance, [[False, False], [False, True]])
    np.testing.assert_allclose(batch.per_reward[0, :, 1], [-1.0, -1.0, 2.0])
    # eps is added to the standard deviation: 2 / (2 + 2)
    halved = scalarised_by_group(scores, weights, scales, 1e-3, 2.0).advantages[1]
    np.testing.assert_allclose(halved, [-0.5, 0.0, 0.5])


@given(seeds, st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
@settings(max_examples=25, deadline=None)
def test_scalarised_by_group_knows_no_other_group_and_no_scale_of_its_own(
    seed: int, factor: float, shift: float
) -> None:
    """A group alone has the advantages that it has in a batch, mean 0 and unbiased std 1, whatever the scale of all its
    rewards is; `scalarised` divides by what the batch has."""
    scores = rollouts(seed)
    together = scalarised_by_group(scores, TWO, TWO, 0.0, 0.0).advantages
    for group, own in zip(scores, together, strict=True):
        alone = scalarised_by_group(factor * group[None] + shift, TWO, TWO, 0.0, 0.0).advantages[0]
        np.testing.assert_allclose(alone, own, atol=1e-8)
    np.testing.assert_allclose(together.std(axis=1, ddof=1), 1.0)
    whole = scalarised(scores, TWO, TWO, 0.0, 0.0).advantages
    ratios = np.std(whole, axis=1, ddof=1)
    assert ratios.max() / ratios.min() > 1.0 + 1e-6


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_scalarised_by_group_gives_zeros_to_a_tie(eps: float) -> None:
    """One group whose sums are equal beside one whose are not: zeros there, in spite of rewards that differ."""
    scores = np.array([[[1.0, 2.0], [2.0, 1.0], [0.0, 3.0]], [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]])
    advantages = scalarised_by_group(scores, TWO, TWO, 1e-3, eps).advantages
    np.testing.assert_array_equal(advantages[0], np.zeros(3))
    np.testing.assert_allclose(advantages[1], [-1.0, 0.0, 1.0], atol=1e-3)


def test_scalarised_lets_the_larger_reward_speak_alone() -> None:
    # a reward that spreads 1000 times wider decides the order; decoupled weighs both alike
    scores = np.array([[[0.0, 0.001], [1.0, 0.0], [0.5, 0.0005]]])
    order = np.argsort(scalarised(scores, TWO, TWO, 0.0, 1e-9).advantages[0])
    np.testing.assert_array_equal(order, [0, 2, 1])
    np.testing.assert_allclose(decoupled(scores, TWO, TWO, 0.0, 0.0).per_reward.sum(axis=2), 0.0, atol=1e-9)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_group_means_are_zero_before_batch_standardisation(seed: int) -> None:
    scores = rollouts(seed)
    for name, aggregate in AGGREGATIONS.items():
        batch = aggregate(scores, TWO, TWO, 1e-3, 1e-4)
        np.testing.assert_allclose(batch.per_reward.mean(axis=1), 0.0, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(batch.advantages.mean(axis=1), 0.0, atol=1e-9, err_msg=name)


@given(seeds, st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
@settings(max_examples=25, deadline=None)
def test_decoupled_ignores_positive_affine_maps_of_a_reward(seed: int, factor: float, shift: float) -> None:
    scores = rollouts(seed)
    mapped = scores * [1.0, factor] + [shift, 0.0]
    plain = decoupled(scores, TWO, TWO, 0.0, 0.0).advantages
    np.testing.assert_allclose(decoupled(mapped, TWO, TWO, 0.0, 0.0).advantages, plain, atol=1e-8)
    # with floor and eps the law holds for a reward that changes its unit together with its scale
    with_eps = decoupled(scores, TWO, TWO, 1e-3, 1e-4).advantages
    rescaled = decoupled(scores * [1.0, factor], TWO, np.array([1.0, factor]), 1e-3, 1e-4).advantages
    np.testing.assert_allclose(rescaled, with_eps, atol=1e-9)


def test_scalarised_does_depend_on_the_scale_of_a_reward() -> None:
    scores = rollouts(1)
    plain = scalarised(scores, TWO, TWO, 0.0, 0.0).advantages
    mapped = scalarised(scores * [1000.0, 1.0], TWO, TWO, 0.0, 0.0).advantages
    assert np.abs(mapped - plain).max() > 0.1


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_members_and_groups_may_come_in_any_order(seed: int) -> None:
    scores = rollouts(seed)
    rng = np.random.default_rng(seed)
    groups, members = rng.permutation(4), rng.permutation(6)
    for aggregate in AGGREGATIONS.values():
        plain = aggregate(scores, TWO, TWO, 1e-3, 1e-4)
        moved = aggregate(scores[groups][:, members], TWO, TWO, 1e-3, 1e-4)
        np.testing.assert_allclose(moved.advantages, plain.advantages[groups][:, members], atol=1e-9)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_decoupled_batch_has_mean_0_and_std_1(seed: int) -> None:
    advantages = decoupled(rollouts(seed), TWO, TWO, 0.0, 0.0).advantages
    assert advantages.mean() == pytest.approx(0.0, abs=1e-9)
    assert advantages.std(ddof=1) == pytest.approx(1.0)


def test_constant_reward_in_a_group_gives_zeros_not_nan() -> None:
    scores = rollouts(2)
    # 0.1 three times has a mean that rounds: equality, not std == 0, must decide
    scores[1, :, 0] = 0.1
    for floor in (0.0, 1e-3):
        batch = decoupled(scores, TWO, TWO, floor, 0.0)
        assert np.isfinite(batch.advantages).all()
        assert batch.zero_variance[1, 0]
        np.testing.assert_array_equal(batch.per_reward[1, :, 0], 0.0)
        assert np.abs(batch.advantages[1]).max() > 0, "the other reward still speaks"


def test_spread_under_the_floor_gives_zeros_and_over_it_full_weight() -> None:
    wave = np.array([-1.0, 0.0, 1.0])  # unbiased std 1
    for spread, silent in ((0.9e-3, True), (1.1e-3, False)):
        scores = (70.0 + 100.0 * spread * wave)[None, :, None]
        batch = decoupled(scores, ONE, np.array([100.0]), 1e-3, 0.0)
        assert batch.zero_variance[0, 0] == silent
        np.testing.assert_allclose(batch.per_reward[0, :, 0], 0.0 if silent else wave, atol=1e-9)


@pytest.mark.parametrize("aggregate", [scalarised, scalarised_by_group])
def test_scalarised_only_reports_the_floor(aggregate: Callable[..., AdvantageBatch]) -> None:
    scores = (1.0 + 1e-6 * np.array([-1.0, 0.0, 1.0]))[None, :, None]
    batch = aggregate(scores, ONE, ONE, 1e-3, 0.0)
    assert batch.zero_variance.all()
    assert np.abs(batch.advantages).max() > 1.0 - 1e-9


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_batch_without_any_variance_gives_zeros(name: str, eps: float) -> None:
    batch = AGGREGATIONS[name](np.full((3, 5, 2), 0.7), TWO, TWO, 1e-3, eps)
    np.testing.assert_array_equal(batch.advantages, np.zeros((3, 5)))
    assert batch.zero_variance.all()


def test_list_of_groups_is_the_stacked_array() -> None:
    scores = rollouts(3)
    listed = decoupled(list(scores), TWO, TWO, 1e-3, 1e-4).advantages
    np.testing.assert_array_equal(listed, decoupled(scores, TWO, TWO, 1e-3, 1e-4).advantages)


def test_reward_weight_by_hand() -> None:
    # 1/2 + A / 10: -7 -> clipped 0, -5 -> 0, 0 -> 0.5, 2 -> 0.7, 9 -> clipped 1
    weight = to_reward_weight(np.array([-7.0, -5.0, 0.0, 2.0, 9.0]), 5.0)
    np.testing.assert_allclose(weight, [0.0, 0.0, 0.5, 0.7, 1.0])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([np.zeros((3, 2)), np.zeros((2, 2))], r"one shape.*\(2, 2\), \(3, 2\)"),
        ([], "one or more groups"),
        (np.zeros((2, 1, 2)), r"G >= 2.*\(2, 1, 2\)"),
        (np.zeros((2, 3, 3)), r"\(2, 3, 3\), 2 weights"),
        (np.full((2, 3, 2), np.nan), "12 scores are not finite"),
    ],
)
def test_refusals_carry_the_values(scores: list[F64] | F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoupled(scores, TWO, TWO, 1e-3, 1e-4)


def test_clip_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="adv_clip_max"):
        to_reward_weight(np.zeros(2), 0.0)


SECTIONS = {
    "decoupled": ({}, decoupled),
    "scalarised": ({}, scalarised),
    "scalarised, std: batch": ({"std": "batch"}, scalarised),
    "scalarised, std: group": ({"std": "group"}, scalarised_by_group),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_recipe_names_the_formula(name: str) -> None:
    keys, formula = SECTIONS[name]
    adapter = TypeAdapter(AnyAdvantage)
    section = adapter.validate_python({"aggregation": name.split(",")[0], "std_floor": 0.5, "eps": 0.1, **keys})
    rewards = [
        SimpleNamespace(name=reward, weight=weight, scale=scale)
        for reward, weight, scale in (("a", 1.0, 0.1), ("b", 2.0, 20.0))
    ]
    scores = rollouts(4)
    expected = formula(scores, np.array([1.0, 2.0]), np.array([0.1, 20.0]), 0.5, 0.1)
    got = section.advantages(scores, rewards, [])
    np.testing.assert_array_equal(got.advantages, expected.advantages)
    np.testing.assert_array_equal(got.zero_variance, expected.zero_variance)
