"""Advantages: hand-computed numbers, the laws that each aggregation obeys, and what happens without any variance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.advantages import AGGREGATIONS, AdvantageBatch, attribute_aware, decoupled, scalarised, to_reward_weight
from rl.types import F64

ONE = np.ones(1)
TWO = np.ones(2)
seeds = st.integers(0, 2**32 - 1)
FIDELITY = np.array([True, False, False])


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


def test_scalarised_only_reports_the_floor() -> None:
    scores = (1.0 + 1e-6 * np.array([-1.0, 0.0, 1.0]))[None, :, None]
    batch = scalarised(scores, ONE, ONE, 1e-3, 0.0)
    assert batch.zero_variance.all()
    assert np.abs(batch.advantages).max() > 1.0


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


def arf(scores: F64, rho_d: list[float] | F64, std_floor: float = 0.0, eps: float = 0.0) -> AdvantageBatch:
    """The published set, one fidelity and two perceptual rewards; `test_attributes.py` has the published numbers."""
    return attribute_aware(scores, np.asarray(rho_d), FIDELITY, np.ones(3), np.ones(3), std_floor, eps)


def test_attribute_aware_by_hand() -> None:
    # min-max: fidelity 0 1/2 1; perceptual 1 0 1/2 and 0 1 1/2, weighted 3 to 1: 3/4 1/4 1/2
    # rho_d = 1/5: R = 4/5 (0 1/2 1) + 1/5 (3/4 1/4 1/2) = 0.15 0.45 0.9; mean 0.5, unbiased std sqrt(0.285 / 2)
    scores = np.array([[[20.0, 9.0, 40.0], [21.0, 5.0, 60.0], [22.0, 7.0, 50.0]]])
    batch = attribute_aware(scores, np.array([0.2]), FIDELITY, np.array([7.0, 3.0, 1.0]), np.ones(3), 0.0, 0.0)
    np.testing.assert_allclose(batch.per_reward[0], [[0.0, 1.0, 0.0], [0.5, 0.0, 1.0], [1.0, 0.5, 0.5]])
    np.testing.assert_allclose(batch.advantages, [np.array([-0.35, -0.05, 0.4]) / np.sqrt(0.1425)])
    assert not batch.zero_variance.any()
    with_eps = attribute_aware(scores, np.array([0.2]), FIDELITY, np.array([7.0, 3.0, 1.0]), np.ones(3), 0.0, 1.0)
    np.testing.assert_allclose(with_eps.advantages, [np.array([-0.35, -0.05, 0.4]) / (np.sqrt(0.1425) + 1.0)])


def test_attribute_aware_listens_to_one_set_where_the_image_is_all_smooth_or_all_detail() -> None:
    scores = rollouts(5, groups=2, rewards=3)
    other_perceptual, other_fidelity = scores.copy(), scores.copy()
    other_perceptual[0, :, 1:] = rollouts(6, groups=1, rewards=2)[0]
    other_fidelity[1, :, 0] = rollouts(7, groups=1, rewards=1)[0, :, 0]
    plain = arf(scores, [0.0, 1.0]).advantages
    np.testing.assert_array_equal(arf(other_perceptual, [0.0, 1.0]).advantages, plain)
    np.testing.assert_array_equal(arf(other_fidelity, [0.0, 1.0]).advantages, plain)


def test_attribute_aware_needs_no_reward_of_a_set_that_no_image_listens_to() -> None:
    scores = rollouts(8, rewards=1)
    for detail, is_fidelity in ((0.0, True), (1.0, False)):
        alone = attribute_aware(scores, np.full(4, detail), np.array([is_fidelity]), ONE, ONE, 0.0, 0.0).advantages
        z = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, ddof=1, keepdims=True)
        np.testing.assert_allclose(alone, z[..., 0], atol=1e-12)


@given(seeds, st.integers(0, 2), st.floats(0.01, 100.0), st.floats(-50.0, 50.0))
@settings(max_examples=25, deadline=None)
def test_attribute_aware_ignores_positive_affine_maps_of_a_reward(
    seed: int, reward: int, factor: float, shift: float
) -> None:
    scores = rollouts(seed, rewards=3)
    rho_d = np.random.default_rng(seed).uniform(size=4)
    mapped = scores.copy()
    mapped[..., reward] = factor * scores[..., reward] + shift
    np.testing.assert_allclose(arf(mapped, rho_d).advantages, arf(scores, rho_d).advantages, atol=1e-8)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_attribute_aware_groups_have_mean_0_and_std_1_and_do_not_mix(seed: int) -> None:
    scores = rollouts(seed, rewards=3)
    rho_d = np.random.default_rng(seed).uniform(size=4)
    advantages = arf(scores, rho_d).advantages
    np.testing.assert_allclose(advantages.mean(axis=1), 0.0, atol=1e-9)
    np.testing.assert_allclose(advantages.std(axis=1, ddof=1), 1.0)
    np.testing.assert_array_equal(arf(scores[2:3], rho_d[2:3]).advantages, advantages[2:3])


@given(seeds, st.floats(0.0, 1.0))
@settings(max_examples=25, deadline=None)
def test_attribute_aware_pairs_are_plus_and_minus_one_over_sqrt_2(seed: int, rho_d: float) -> None:
    advantages = arf(rollouts(seed, groups=1, members=2, rewards=3), [rho_d]).advantages
    # a draw where rewards of equal weight contradict each other is a tie
    expected = 2**-0.5 if advantages.any() else 0.0
    np.testing.assert_allclose(np.sort(advantages[0]), [-expected, expected], atol=1e-9)


def test_attribute_aware_reward_without_variance_has_no_say() -> None:
    scores = rollouts(9, rewards=3)
    scores[1, :, 0] = 0.1  # its mean rounds
    batch = arf(scores, np.full(4, 0.3))
    np.testing.assert_array_equal(np.argwhere(batch.zero_variance), [[1, 0]])
    np.testing.assert_array_equal(batch.per_reward[1, :, 0], 0.0)
    perceptual = batch.per_reward[1, :, 1:].sum(axis=1)
    expected = (perceptual - perceptual.mean()) / perceptual.std(ddof=1)
    np.testing.assert_allclose(batch.advantages[1], expected, atol=1e-12)


def test_attribute_aware_floor_is_asked_before_min_max_stretches_the_spread() -> None:
    wave = np.array([-1.0, 0.0, 1.0])  # unbiased std 1
    for spread, silent in ((0.9e-3, True), (1.1e-3, False)):
        scores = (70.0 + 100.0 * spread * wave)[None, :, None]
        batch = attribute_aware(scores, np.zeros(1), np.array([True]), ONE, np.array([100.0]), 1e-3, 0.0)
        assert batch.zero_variance[0, 0] == silent
        np.testing.assert_allclose(batch.advantages[0], 0.0 if silent else wave, atol=1e-9)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_attribute_aware_group_that_ties_gives_zeros(eps: float) -> None:
    np.testing.assert_array_equal(arf(np.full((2, 5, 3), 0.7), [0.0, 0.6], eps=eps).advantages, np.zeros((2, 5)))
    # 0.2 + 0.1 against 0.3: the perceptual means are 1/2 up to rounding, which eps 0 would standardise to 0.8
    scores = np.array([[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.5, 0.5, 0.5]]])
    weights, fidelity = np.array([1.0, 0.2, 0.1, 0.3]), np.array([True, False, False, False])
    batch = attribute_aware(scores, np.ones(1), fidelity, weights, np.ones(4), 0.0, eps)
    np.testing.assert_array_equal(batch.advantages, np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("scores", "rho_d", "fidelity", "weights", "message"),
    [
        (np.full((1, 3, 2), np.nan), [0.5], [True, False], TWO, "6 scores are not finite"),
        (np.zeros((2, 3, 2)), [0.5], [True, False], TWO, r"rho_d \[2\].*got rho_d \(1,\)"),
        (np.zeros((1, 3, 2)), [0.5], [True], TWO, r"fidelity \[2\].*got .*fidelity \(1,\)"),
        (np.zeros((2, 3, 2)), [0.5, 1.5], [True, False], TWO, r"in 0\.\.1, got \[1\.5\]"),
        (np.zeros((1, 3, 2)), [np.nan], [True, False], TWO, r"in 0\.\.1, got \[nan\]"),
        (np.zeros((2, 3, 2)), [0.0, 0.5], [True, True], TWO, r"1 of 2 images listen to perceptual .* sum to 0\.0"),
        (np.zeros((2, 3, 2)), [1.0, 0.5], [False, False], TWO, r"1 of 2 images listen to fidelity .* rho_d to 1"),
        (np.zeros((1, 3, 2)), [0.5], [True, False], np.array([0.0, 1.0]), "listen to fidelity rewards, whose weights"),
    ],
)
def test_attribute_aware_refusals_carry_the_values(
    scores: F64, rho_d: list[float], fidelity: list[bool], weights: F64, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attribute_aware(scores, np.array(rho_d), np.array(fidelity), weights, TWO, 1e-3, 1e-4)
