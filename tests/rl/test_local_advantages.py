"""Advantages per cell: the laws that tie them to the advantages of scores, for every aggregation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from rl.advantages import (
    AdvantageBatch,
    attribute_aware,
    decoupled,
    detail_shares,
    scalarised,
    scalarised_by_group,
)
from rl.config.advantage import AdvantageSection, AttributeAwareSection, DecoupledSection, ScalarisedSection
from rl.data.attributes import attribute_shares, detail_map
from rl.types import F64, RewardMap, RewardTable, SRTask

N, G, H, W, R = 3, 5, 2, 4, 2
WEIGHTS, SCALES = np.array([1.0, 0.5]), np.array([2.0, 0.1])
Formula = Callable[..., AdvantageBatch]
FORMULAS: dict[str, Formula] = {
    "decoupled": decoupled,
    "scalarised": scalarised,
    "scalarised_by_group": scalarised_by_group,
    "attribute_aware": partial(attribute_aware, rho_d=np.array([0.2, 0.5, 0.9]), fidelity=np.array([True, False])),
}


def run(name: str, values: F64, scales: F64 = SCALES, std_floor: float = 1e-3, eps: float = 1e-4) -> AdvantageBatch:
    return FORMULAS[name](values, weights=WEIGHTS, scales=scales, std_floor=std_floor, eps=eps)


def local_scores(seed: int, cells: tuple[int, int] = (H, W)) -> F64:
    return np.random.default_rng(seed).normal(size=(N, G, *cells, R)) * SCALES + [30.0, -0.1]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_constant_map_gives_the_advantage_of_its_value(name: str) -> None:
    scores = local_scores(0)[:, :, 0, 0]
    constant = np.broadcast_to(scores[:, :, None, None], (N, G, H, W, R))
    expected, found = run(name, scores), run(name, constant)
    np.testing.assert_allclose(
        found.advantages, np.broadcast_to(expected.advantages[:, :, None, None], (N, G, H, W)), rtol=1e-13, atol=1e-14
    )
    assert (found.zero_variance == expected.zero_variance[:, None, None]).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_permuted_cells_give_permuted_advantages(name: str) -> None:
    values, order = local_scores(1), np.random.default_rng(2).permutation(H * W)
    flat = values.reshape(N, G, 1, H * W, R)
    found, permuted = run(name, flat).advantages, run(name, flat[:, :, :, order]).advantages
    np.testing.assert_allclose(permuted, found[:, :, :, order], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FORMULAS)
def test_rescaling_a_metric_with_its_scale_changes_nothing(name: str) -> None:
    values, factor = local_scores(3), np.array([1.0, 37.0])
    rescaled = run(name, values * factor, SCALES * factor)
    np.testing.assert_allclose(rescaled.advantages, run(name, values).advantages, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["decoupled", "scalarised_by_group", "attribute_aware"])
def test_a_cell_alone_is_a_batch_of_its_scores(name: str) -> None:
    """Without batch statistics a cell's advantages are those of its own scores; decoupled's differ by one factor and
    one shift, the batch's."""
    values = local_scores(4)
    found = run(name, values, eps=0.0).advantages
    for at in np.ndindex(H, W):
        alone = run(name, values[:, :, *at], eps=0.0).advantages
        if name == "decoupled":
            slope, shift = np.polyfit(alone.ravel(), found[:, :, *at].ravel(), 1)
            alone = slope * alone + shift
        np.testing.assert_allclose(found[:, :, *at], alone, rtol=1e-9, atol=1e-12)


def test_decoupled_batch_statistics_count_members_not_cells() -> None:
    """By hand: z per cell, weighted sum, then mean and standard deviation over all cells with the divisor N G - 1 of
    independent values: sum over (n, g) of the mean over cells of the squared difference."""
    scaled = local_scores(5) / SCALES
    z = (scaled - scaled.mean(axis=1, keepdims=True)) / scaled.std(axis=1, ddof=1, keepdims=True)
    fused = z @ WEIGHTS
    variance = np.square(fused - fused.mean()).mean(axis=(2, 3)).sum() / (N * G - 1)
    found = run("decoupled", local_scores(5), std_floor=0.0, eps=0.0)
    np.testing.assert_allclose(found.advantages, (fused - fused.mean()) / np.sqrt(variance), rtol=1e-12)


def test_the_floor_is_that_of_a_cell() -> None:
    """One cell of one reward is constant: there the reward is ignored, elsewhere it counts."""
    values = local_scores(6)
    values[1, :, 0, 2, 0] = 31.0
    found = run("decoupled", values)
    assert np.argwhere(found.zero_variance).tolist() == [[1, 0, 2, 0]]
    assert (found.per_reward[1, :, 0, 2, 0] == 0.0).all()
    assert np.abs(found.per_reward[1, :, 0, 2, 1]).max() > 0.5


def test_attribute_aware_weighs_each_cell_by_its_own_detail() -> None:
    """A smooth cell hears the fidelity reward alone, a detailed one the perceptual one alone."""
    values, rho_d = local_scores(7), np.zeros((N, H, W))
    rho_d[:, 1] = 1.0
    found = attribute_aware(values, rho_d, np.array([True, False]), WEIGHTS, SCALES, 0.0, 0.0).advantages
    for row, reward in ((0, 0), (1, 1)):
        one = values[:, :, row, :, reward]
        z = (one - one.mean(axis=1, keepdims=True)) / one.std(axis=1, ddof=1, keepdims=True)
        np.testing.assert_allclose(found[:, :, row], z, rtol=1e-10, atol=1e-12)


def test_the_detail_of_cells_is_that_of_their_tiles() -> None:
    """Noise in the left half, flat on the right; the mean over the image is the share that is published."""
    hr = np.full((3, 40, 80), 90, np.uint8)
    hr[:, :, :40] = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    task = SRTask(0, "half", hr[:, ::4, ::4], hr, 4, 0)
    assert detail_shares([task], None, 20).tolist() == [[[1.0, 1.0, 0.0, 0.0]] * 2]
    assert detail_map(hr).mean() == attribute_shares(hr).detail == 0.5
    assert detail_shares([task], 0.3, 20).tolist() == [0.3]


@dataclass(frozen=True)
class Reward:
    """What an aggregation reads of a reward."""

    name: str
    weight: float = 1.0
    scale: float = 1.0
    attribute: str | None = None


REWARDS = [Reward("psnr", scale=2.0, attribute="fidelity"), Reward("musiq", 0.5, 0.1, "perceptual")]
TASK = SRTask(0, "photo", np.zeros((3, 4, 8), np.uint8), np.zeros((3, 16, 32), np.uint8), 4, 0)
SECTIONS = {
    "decoupled": lambda **keys: DecoupledSection(**keys),
    "scalarised": lambda **keys: ScalarisedSection(**keys),
    "group": lambda **keys: ScalarisedSection(std="group", **keys),
    "attribute_aware": lambda **keys: AttributeAwareSection(detail_share=0.4, **keys),
}


def tables(cells: tuple[int, int], maps: tuple[bool, ...] = (True, True)) -> list[RewardTable]:
    made = []
    for n, values in enumerate(local_scores(8, cells)):
        scores = values.mean(axis=(1, 2))
        kept = tuple(RewardMap.of(values[..., k]) if has else None for k, has in enumerate(maps))
        made.append(RewardTable(n, ("psnr", "musiq"), scores, (0.0, 0.0), kept if any(maps) else ()))
    return made


@pytest.mark.parametrize("name", SECTIONS)
def test_one_cell_is_the_scalar_aggregation_of_the_scores_bit_for_bit(name: str) -> None:
    """Whatever the maps, which a carrier rounds, and whatever the weight of the local part."""
    scored, tasks = tables((1, 1)), [TASK] * N
    expected = SECTIONS[name]().of_tables(scored, REWARDS, tasks, None)
    found = SECTIONS[name](spatial="map", local_weight=0.3).of_tables(scored, REWARDS, tasks, 32)
    np.testing.assert_array_equal(found.advantages, expected.advantages)
    assert found.advantages.shape == (N, G)


@pytest.mark.parametrize("name", SECTIONS)
def test_without_maps_of_a_run_the_scores_decide(name: str) -> None:
    section: AdvantageSection = SECTIONS[name]()
    scored = tables((H, W), maps=(False, False))
    expected = section.advantages(np.stack([table.scores for table in scored]), REWARDS, [TASK] * N)
    np.testing.assert_array_equal(section.of_tables(scored, REWARDS, [TASK] * N, None).advantages, expected.advantages)


@pytest.mark.parametrize("name", SECTIONS)
def test_global_and_local_parts_are_mixed_by_their_weight(name: str) -> None:
    scored = tables((H, W), maps=(True, False))
    found = {
        weight: SECTIONS[name](spatial="map", local_weight=weight).of_tables(scored, REWARDS, [TASK] * N, 8).advantages
        for weight in (0.25, 1.0)
    }
    whole = SECTIONS[name]().of_tables(scored, REWARDS, [TASK] * N, None).advantages
    np.testing.assert_allclose(found[0.25], 0.75 * whole[:, :, None, None] + 0.25 * found[1.0], rtol=1e-12, atol=1e-14)


def test_a_group_without_a_map_counts_with_its_scores() -> None:
    """A user's file may return maps for some groups only."""
    scored = tables((H, W))
    bare = RewardTable(1, scored[1].names, scored[1].scores, scored[1].seconds)
    found = DecoupledSection(spatial="map").of_tables([scored[0], bare], REWARDS, [TASK] * 2, 8).advantages
    assert np.ptp(found[1], axis=(1, 2)).max() == 0.0 and np.ptp(found[0], axis=(1, 2)).min() > 0.0


def test_a_run_with_maps_refuses_a_batch_without() -> None:
    with pytest.raises(ValueError, match=r"expected reward maps of one shape \[G, h, w\], got no map"):
        DecoupledSection(spatial="map").of_tables(tables((H, W), (False, False)), REWARDS, [TASK] * N, 8)
