"""GDPO-SR's aggregation: numbers by hand and its laws; `tests/rl/data/test_attributes.py` has the published numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.advantages import AdvantageBatch, attribute_aware
from rl.config.advantage import AttributeAwareSection
from rl.data.attributes import attribute_shares
from rl.types import F64, SRTask

ONE = np.ones(1)
TWO = np.ones(2)
seeds = st.integers(0, 2**32 - 1)
FIDELITY = np.array([True, False, False])


def rollouts(seed: int, groups: int = 4, members: int = 6, rewards: int = 2) -> F64:
    return np.random.default_rng(seed).normal(size=(groups, members, rewards)) * [[[0.02] * (rewards - 1) + [30.0]]]


def arf(scores: F64, rho_d: list[float] | F64, std_floor: float = 0.0, eps: float = 0.0) -> AdvantageBatch:
    """The published set, one fidelity and two perceptual rewards."""
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
        (np.zeros((2, 3, 2)), [0.5], [True, False], TWO, r"rho_d \(2,\) and.*got rho_d \(1,\)"),
        (np.zeros((1, 3, 2)), [0.5], [True], TWO, r"fidelity \(2,\).*got .*fidelity \(1,\)"),
        (np.zeros((2, 3, 2)), [0.5, 1.5], [True, False], TWO, r"in 0\.\.1, got \[1\.5\]"),
        (np.zeros((1, 3, 2)), [np.nan], [True, False], TWO, r"in 0\.\.1, got \[nan\]"),
        (np.zeros((2, 3, 2)), [0.0, 0.5], [True, True], TWO, r"1 of 2 images take perceptual .* sum to 0\.0"),
        (np.zeros((2, 3, 2)), [1.0, 0.5], [False, False], TWO, r"1 of 2 images take fidelity .* rho_d to 1"),
        (np.zeros((1, 3, 2)), [0.5], [True, False], np.array([0.0, 1.0]), "take fidelity rewards, whose weights"),
    ],
)
def test_attribute_aware_refusals_carry_the_values(
    scores: F64, rho_d: list[float], fidelity: list[bool], weights: F64, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attribute_aware(scores, np.array(rho_d), np.array(fidelity), weights, TWO, 1e-3, 1e-4)


def test_a_recipe_reads_each_images_share_or_fixes_it() -> None:
    """rho_d of the task's HR image where `detail_share` has no value; an image without HR is named."""
    rewards = [
        SimpleNamespace(name=name, attribute=kind, weight=weight, scale=1.0)
        for name, kind, weight in (
            ("psnr", "fidelity", 1.0),
            ("musiq", "perceptual", 2.0),
            ("maniqa", "perceptual", 1.0),
        )
    ]
    hr = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    smooth = np.full((3, 64, 64), 90, np.uint8)
    tasks = [SRTask(i, f"photo {i}", hr[:, ::4, ::4], image, 4, 0) for i, image in enumerate((hr, smooth))]
    shares = [attribute_shares(image).detail for image in (hr, smooth)]
    assert shares[0] > shares[1]
    scores, weights = rollouts(3, groups=2, rewards=3), np.array([1.0, 2.0, 1.0])
    for section, rho_d in (
        (AttributeAwareSection(std_floor=0.0), shares),
        (AttributeAwareSection(std_floor=0.0, detail_share=0.25), [0.25, 0.25]),
    ):
        expected = attribute_aware(scores, np.array(rho_d), FIDELITY, weights, np.ones(3), 0.0, section.eps)
        np.testing.assert_array_equal(section.advantages(scores, rewards, tasks).advantages, expected.advantages)
    bare = SRTask(5, "photo 5", hr[:, ::4, ::4], None, 4, 0)
    with pytest.raises(ValueError, match="task 5 'photo 5' has no HR image to take a detailed share from"):
        AttributeAwareSection().advantages(scores[:1], rewards, [bare])
