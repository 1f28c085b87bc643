"""Pooling to cells, the carrier of maps, and the values that advantages are taken of."""

from typing import Any

import numpy as np
import pytest

from rl.spatial import grid, per_member, pooled, values_per_cell
from rl.types import RewardColumn, RewardMap, RewardTable, map_bytes


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("size, cell, expected", [((32, 48), 16, (2, 3)), ((33, 47), 16, (3, 3)), ((5, 4), 8, (1, 1))])
def test_a_grid_covers_the_image(size: tuple[int, int], cell: int, expected: tuple[int, int]) -> None:
    assert grid(size, cell) == expected
    assert pooled(random(2, *size), size, cell).shape == (2, *expected)


def test_where_the_grid_divides_cells_are_plain_means() -> None:
    values = random(2, 24, 36)
    np.testing.assert_allclose(pooled(values, (24, 36), 12), values.reshape(2, 2, 12, 3, 12).mean(axis=(2, 4)))
    coarse = pooled(values, (96, 144), 48)  # one sample has 4 x 4 pixels
    np.testing.assert_allclose(coarse, values.reshape(2, 2, 12, 3, 12).mean(axis=(2, 4)))
    np.testing.assert_allclose(pooled(values > 0, (24, 36), 12), (values > 0).reshape(2, 2, 12, 3, 12).mean((2, 4)))


def test_the_last_cell_has_what_is_left() -> None:
    values = random(1, 10, 7)
    cells = pooled(values, (10, 7), 4)[0]
    assert cells.shape == (3, 2)
    assert cells[2, 1] == pytest.approx(values[0, 8:, 4:].mean())


def test_samples_that_lie_in_two_cells_are_shared_by_area() -> None:
    """Three samples on four pixels: a cell of two has 4/3 of the first sample and 2/3 of the second."""
    cells = pooled(np.array([[[3.0, 6.0, 12.0]]]), (1, 4), 2)
    np.testing.assert_allclose(cells, [[[(2 * 3 + 6) / 3, (6 + 2 * 12) / 3]]])


def test_the_area_weighted_mean_is_kept() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        size = tuple(rng.integers(1, 80, 2).tolist())
        values = rng.standard_normal((2, *rng.integers(1, 60, 2)))
        cell = int(rng.integers(1, 24))
        cells = pooled(values, size, cell)
        rows, columns = (np.minimum(cell, side - cell * np.arange(-(-side // cell))) for side in size)
        areas = np.outer(rows, columns)
        assert areas.sum() == size[0] * size[1]
        np.testing.assert_allclose((cells * areas).sum((1, 2)) / areas.sum(), values.mean((1, 2)), atol=1e-12)
        assert (values.min() - 1e-12 <= cells).all() and (cells <= values.max() + 1e-12).all()


def test_an_inset_moves_the_samples_inwards() -> None:
    """20 pixels with a margin of 4: twelve samples of one pixel; those of a cell are the ones inside it."""
    row = np.arange(12.0)
    cells = pooled(np.broadcast_to(row, (1, 12, 12)), (20, 20), 10, inset=4)[0]
    np.testing.assert_allclose(cells, [[row[:6].mean(), row[6:].mean()]] * 2)
    assert pooled(row[None, None], (1, 20), 20, inset=0.0)[0, 0, 0] == pytest.approx(row.mean())


def test_a_cell_without_samples_takes_the_nearest() -> None:
    """24 pixels with a margin of 8, in cells of 4: the outer two on each side lie in the margin."""
    row = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    cells = pooled(np.broadcast_to(row, (1, 8, 8)), (24, 24), 4, inset=8)[0]
    np.testing.assert_allclose(cells, [[1, 1, 2.5, 6.5, 8, 8]] * 6)


@pytest.mark.parametrize("level, spread", [(30.0, 0.1), (-0.4, 1e-6), (1e-6, 1e-6), (0.0, 50.0)])
def test_a_map_keeps_differences_to_5e_4_of_the_largest(level: float, spread: float) -> None:
    """A float16 of 30 dB would be wrong by 0.008 dB, 8 % of the spread."""
    values = level + spread * random(8, 5, 6)
    carried = RewardMap.of(values)
    largest = np.abs(values - values.mean(axis=0)).max()
    assert np.abs(carried.values() - values).max() <= 5e-4 * largest
    assert carried.shape == (8, 5, 6)
    assert carried.mean.nbytes + carried.deviation.nbytes == map_bytes(8, 5, 6) == 2 * 8 * 5 * 6 + 4 * 5 * 6


def test_a_map_is_a_mean_and_differences_in_its_unit() -> None:
    carried = RewardMap.of(np.array([[[1.0, 7.0]], [[4.0, 7.0]], [[4.0, 7.0]]]))
    assert carried.mean.tolist() == [[3.0, 7.0]] and carried.unit == 2.0
    assert carried.deviation.tolist() == [[[-1.0, 0.0]], [[0.5, 0.0]], [[0.5, 0.0]]]


@pytest.mark.parametrize("level", [0.0, 30.0, 1 / 3])
def test_equal_members_stay_equal(level: float) -> None:
    carried = RewardMap.of(np.full((4, 2, 3), level))
    assert carried.unit > 0
    assert (carried.values() == carried.values()[0]).all()
    np.testing.assert_allclose(carried.values(), level, rtol=1e-12)


def table(ordinal: int, *maps: RewardMap | None, members: int = 3) -> RewardTable:
    names = tuple(f"r{k}" for k in range(len(maps)))
    return RewardTable(ordinal, names, random(members, len(maps), seed=ordinal), (0.1,) * len(maps), maps)


def test_a_reward_without_a_map_has_its_score_in_every_cell() -> None:
    maps = [RewardMap.of(random(3, 2, 4, seed=k)) for k in range(2)]
    tables = [table(0, maps[0], None), table(1, maps[1], None)]
    values = values_per_cell(tables)
    assert values.shape == (2, 3, 2, 4, 2)
    for k, one in enumerate(tables):
        np.testing.assert_array_equal(values[k, ..., 0], maps[k].values())
        np.testing.assert_array_equal(values[k, ..., 1], np.broadcast_to(one.scores[:, 1, None, None], (3, 2, 4)))


def test_grids_that_differ_are_refused() -> None:
    small, large = RewardMap.of(random(3, 2, 4)), RewardMap.of(random(3, 4, 4))
    for tables in ([table(0, small, large)], [table(0, small), table(1, large)]):
        with pytest.raises(ValueError, match=r"one shape \[G, h, w\], got \[\(3, 2, 4\), \(3, 4, 4\)\]"):
            values_per_cell(tables)
    with pytest.raises(ValueError, match="got no map"):
        values_per_cell([table(0, None), table(1, None)])


def test_a_table_takes_its_maps_from_the_columns() -> None:
    carried = RewardMap.of(random(3, 2, 2))
    columns = [RewardColumn(5, "a", np.zeros(3), 0.1), RewardColumn(5, "b", np.ones(3), 0.2, carried)]
    assert RewardTable.of(5, columns).maps == (None, carried)
    assert RewardTable.of(5, columns[:1]).maps == ()


def test_a_table_refuses_maps_of_the_wrong_count() -> None:
    carried = RewardMap.of(random(3, 2, 2))
    with pytest.raises(ValueError, match=r"RewardTable 4: expected 2 maps of 3 members, got 1 of \{3\}"):
        RewardTable(4, ("a", "b"), np.zeros((3, 2)), (0.1, 0.1), (carried,))
    with pytest.raises(ValueError, match=r"expected 1 maps of 4 members, got 1 of \{3\}"):
        table(0, carried, members=4)


def test_the_mean_per_member() -> None:
    np.testing.assert_allclose(per_member(np.array([[[1.0, 3.0]], [[2.0, 6.0]]])), [2, 4])
    np.testing.assert_array_equal(per_member(np.array([1.0, 2.0])), [1, 2])
