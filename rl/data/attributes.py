"""How much of a photograph is smooth and how much detailed: the attribute in GDPO-SR's Attribute-aware Reward Function
(ARF, arXiv 2603.16769, section 4.2 and figure 4).

    gray -> tiles -> each tile enlarged -> Sobel magnitude -> histogram -> entropy H -> detailed or smooth

`rl.advantages.attribute_aware` weights fidelity rewards by the smooth share and perceptual rewards by the detail share.
The paper gives the chain and the tile of 10 px; all other numbers come from its authors' code.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rl.types import F32, F64, U8

BIN_WIDTH = 11.0 / 512.0
"""Bin width of the Sobel magnitude; half of the published 512 bins over (-5.5, 5.5) stay empty."""
BINS = 256
"""Bins from 0 up; the Sobel magnitude of an image in 0..1 cannot reach 5.5."""


@dataclass(frozen=True)
class AttributeShares:
    """Shares of pixels in 0..1; they sum to 1."""

    smooth: float
    """rho_s"""
    detail: float
    """rho_d"""


def attribute_shares(hr: U8, *, tile: int = 10, resized: int = 64, threshold: float = 50.0) -> AttributeShares:
    """The shares rho_s and rho_d of smooth and detailed pixels.

    hr: `[3, H, W]` RGB; tile, resized: pixels; threshold: bit * pixel.

        p     = histogram of |Sobel(tile of gray / 255, enlarged to resized x resized)|, in bins of 11/512
        H     = - sum p log2 p                                     bit
        rho_d = share of pixels whose tile has H h w > threshold   rounded to 0.01
        rho_s = 1 - rho_d

    h, w: the tile before enlargement. Tiles at the right and bottom edges may be smaller, so they need a larger
    entropy: with the defaults a full tile is detailed from 0.5 bit, a 10 x 2 strip from 2.5 bit, and a 2 x 2 corner
    never, because 256 bins hold at most 8 bit.

    ValueError if hr is not uint8 `[3, H, W]`, tile or resized is below 1, or threshold is negative.
    """
    rho_d = round(float(detail_map(hr, tile=tile, resized=resized, threshold=threshold).mean()), 2)
    return AttributeShares(smooth=round(1.0 - rho_d, 2), detail=rho_d)


def detail_map(hr: U8, *, tile: int = 10, resized: int = 64, threshold: float = 50.0) -> NDArray[np.bool_]:
    """Which pixels `[H, W]` lie in a detailed tile; arguments and errors of `attribute_shares`."""
    if hr.dtype != np.uint8 or hr.ndim != 3 or hr.shape[0] != 3 or hr.size == 0:
        raise ValueError(f"attribute_shares: expected hr uint8 [3, H, W], got {hr.dtype} {hr.shape}")
    if tile < 1 or resized < 1 or not threshold >= 0.0:
        raise ValueError(
            f"attribute_shares: expected tile and resized of at least 1 and threshold of at least 0, "
            f"got tile {tile}, resized {resized}, threshold {threshold}"
        )
    # COLOR_BGR2GRAY on RGB, as published, swaps the weights of red and blue and moves rho_d by up to 0.04
    gray = cv2.cvtColor(np.ascontiguousarray(hr.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    detailed = np.empty(gray.shape, np.bool_)
    for where, tiles in _tile_rows((gray / 255.0).astype(np.float32), tile):
        area = tiles.shape[1] * tiles.shape[2]
        detailed[where] = np.repeat(_entropies(tiles, resized) * area > threshold, tiles.shape[2])
    return detailed


def _tile_rows(gray: F32, tile: int) -> Iterator[tuple[tuple[slice, slice], F32]]:
    """Every pixel once, as stacks `[n, h, w]` of equal tiles and where they lie: per row the full tiles, then the
    remaining one.

    One row at a time, because all enlarged tiles of a 512 x 512 image take 43 MB and do not fit in the cache.
    """
    full = gray.shape[1] // tile * tile
    for top in range(0, gray.shape[0], tile):
        rows = slice(top, top + tile)
        row = gray[rows]
        if full:
            yield (rows, slice(0, full)), row[:, :full].reshape(len(row), -1, tile).swapaxes(0, 1)
        if full < gray.shape[1]:
            yield (rows, slice(full, None)), row[None, :, full:]


def _entropies(tiles: F32, resized: int) -> F64:
    """`[n, h, w]` gray in 0..1 -> `[n]` entropy of the Sobel magnitude of the enlarged tile, in bits.

    Enlarging and Sobel are linear and separable: together one matrix per axis, g_x = S_h t D_w^T, g_y = D_h t S_w^T.
    """
    count, height, width = tiles.shape
    smooth_h, difference_h = _sobel_after_resize(height, resized)
    smooth_w, difference_w = _sobel_after_resize(width, resized)
    g_x = smooth_h @ tiles @ difference_w.T
    g_y = difference_h @ tiles @ smooth_w.T
    bins = (np.sqrt(g_x * g_x + g_y * g_y) / np.float32(BIN_WIDTH)).astype(np.int32).reshape(count, -1)
    own_bins = bins + BINS * np.arange(count, dtype=np.int32)[:, None]
    histogram = np.bincount(own_bins.ravel(), minlength=count * BINS).reshape(count, BINS)
    p = histogram / resized**2
    entropies: F64 = -(p * np.log2(p, where=p > 0.0, out=np.zeros_like(p))).sum(axis=1)
    return entropies


def _sobel_after_resize(side: int, resized: int) -> tuple[F32, F32]:
    """`[resized, side]` matrices: bilinear resize, then Sobel's (1 2 1) and (-1 0 1), borders replicated."""
    # the matrix of cv2's resize is the resized identity, along one axis
    enlarge = cv2.resize(np.eye(side, dtype=np.float32), (side, resized), interpolation=cv2.INTER_LINEAR)
    padded = np.pad(enlarge.reshape(resized, side), ((1, 1), (0, 0)), mode="edge")
    return padded[:-2] + 2.0 * padded[1:-1] + padded[2:], padded[2:] - padded[:-2]
