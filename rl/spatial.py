"""Scores with a place: grids of cells over an image, pooling to them, and the values that advantages are taken of.

    a reward's map -> pooled to cells of `cell_px` pixels -> RewardMap -> values [N, G, h, w, R] -> rl.advantages

A cell is a square of `advantage.pool` x `advantage.pool` latent cells; cells at the right and bottom edge may be
smaller. Left out: how a reward makes its map (`rewards/`), and how a loss reads advantages per cell
(`rl/objectives/cells.py`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rl.types import F64, RewardTable


def grid(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """Rows and columns of cells over an image of `size` (height, width), in the unit of `cell`."""
    return -(-size[0] // cell), -(-size[1] // cell)


def pooled(
    values: NDArray[np.floating] | NDArray[np.bool_], size: tuple[int, int], cell_px: int, inset: float = 0.0
) -> F64:
    """Area means `[..., h, w]` -> `[..., rows, columns]` over the cells of an image of `size` pixels.

    The map's samples are equal rectangles that tile the image without a margin of `inset` pixels on every side: SSIM's
    window is 11 pixels wide, so its map begins 5 pixels inside. A cell without any sample takes the nearest one.
    """
    rows, columns = (
        _overlaps(side, samples, cell_px, inset) for side, samples in zip(size, values.shape[-2:], strict=True)
    )
    means: F64 = rows @ values.astype(np.float64) @ columns.T
    return means


def scores_of(tables: Sequence[RewardTable]) -> F64:
    """`[N, G, R]`"""
    return np.stack([table.scores for table in tables])


def values_per_cell(tables: Sequence[RewardTable]) -> F64:
    """`[N, G, h, w, R]`: every reward's map; a reward without one has its score in every cell.

    Raises:
        ValueError: no reward has a map, or grids differ.
    """
    shapes = {reward_map.shape for table in tables for reward_map in table.maps if reward_map is not None}
    if len(shapes) != 1:
        raise ValueError(
            f"advantage.spatial map: expected reward maps of one shape [G, h, w], got {sorted(shapes) or 'no map'}"
        )
    shape = shapes.pop()
    return np.stack([np.stack(_columns(table, shape), axis=-1) for table in tables])


def per_member(values: F64) -> F64:
    """`[G]` as it is; `[G, h, w]` as its mean over the cells."""
    mean: F64 = values if values.ndim == 1 else values.mean(axis=(1, 2))
    return mean


def _columns(table: RewardTable, shape: tuple[int, int, int]) -> list[F64]:
    columns = [np.broadcast_to(scores[:, None, None], shape) for scores in table.scores.T]
    for k, reward_map in enumerate(table.maps):
        if reward_map is not None:
            columns[k] = reward_map.values()
    return columns


def _overlaps(side: int, samples: int, cell: int, inset: float) -> F64:
    """`[cells, samples]` weights along one axis; each row sums to 1."""
    step = (side - 2 * inset) / samples
    low = inset + step * np.arange(samples)
    start = cell * np.arange(-(-side // cell))[:, None]
    end = np.minimum(start + cell, side)
    overlap = np.clip(np.minimum(end, low + step) - np.maximum(start, low), 0.0, None)
    empty = np.flatnonzero(overlap.sum(axis=1) == 0.0)
    middle = (start + end)[empty] / 2
    overlap[empty, np.abs(low + step / 2 - middle).argmin(axis=1)] = 1.0
    weights: F64 = overlap / overlap.sum(axis=1, keepdims=True)
    return weights
