"""Paired percentile bootstrap of a mean difference, over pairs or over clusters of pairs.

Left out: bias correction (BCa). The percentile interval is too narrow for fewer than about ten clusters; the report
says so below its table.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.types import F64

_CHUNK = 1_000_000
"""Resampled cluster indices held at once."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence limits."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    before: F64,
    after: F64,
    *,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    clusters: NDArray[np.int64] | None = None,
) -> Interval:
    """Mean of `after - before` (`[N]` each, same order) with its interval.

    `clusters` `[N]` gives the photograph of each pair: whole photographs are drawn, because crops and seeds of one
    photograph are not independent. Each draw is the mean over all pairs of the drawn photographs.
    """
    _check(before, after, level, clusters)
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    # centring first keeps a constant difference exact: the mean of n equal floats need not equal the float
    centre = float(difference[0])
    labels = np.arange(difference.size) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(labels, weights=difference - centre)
    counts = np.bincount(labels)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    step = max(1, _CHUNK // sums.size)
    for start in range(0, draws, step):
        stop = min(start + step, draws)
        picked = rng.integers(0, sums.size, size=(stop - start, sums.size))
        means[start:stop] = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(centre + float((difference - centre).mean()), centre + float(low), centre + float(high))


def _check(before: F64, after: F64, level: float, clusters: NDArray[np.int64] | None) -> None:
    if before.ndim != 1 or before.shape != after.shape or before.size == 0:
        raise ValueError(f"paired_bootstrap: expected two [N >= 1] arrays, got {before.shape} and {after.shape}")
    if clusters is not None and clusters.shape != before.shape:
        raise ValueError(f"paired_bootstrap: expected clusters {before.shape}, one per pair, got {clusters.shape}")
    if not 0 < level < 1:
        raise ValueError(f"paired_bootstrap: expected level between 0 and 1, got {level}")
