"""How well an aggregation tells the members of a group apart, over group sizes: LucidNFT's separability figure.

Both aggregations see the same rollouts: of N groups of 16 members, the first g. Advantages are what the trainer uses
(batch-scaled, unclipped).

The paper's first version shows, at 16 members, about 4.3 distinct levels (scalar) against 9.9 (decoupled), and at 12
members a mean pairwise |dA| of about 0.8 against 2.8, without a stated rule for "distinct" or scale of A. The order of
the two and their growth with g can be compared, the heights cannot: 12 batch-standardised members have a mean pairwise
gap of at most 2/sqrt(3) sqrt(13/12) sqrt(12/11) = 1.26 (evenly spaced), so 2.8 was measured on another scale.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl.advantages import decoupled, scalarised
from rl.types import F64

AGGREGATIONS = {"decoupled": decoupled, "scalarised": scalarised}
GROUP_SIZES = tuple(range(2, 17))
PAPER = (("scalarised", 16, 4.3), ("decoupled", 16, 9.9))
"""(aggregation, group size, distinct levels) read off the figure."""


@dataclass(frozen=True)
class SeparabilityRow:
    """Means over N groups."""

    aggregation: str
    group_size: int
    distinct_levels: float
    mean_gap: float
    """Mean |dA| over the pairs of a group."""
    max_gap: float
    """Mean over groups of the largest |dA|."""


def separability(
    scores: F64,
    weights: F64,
    scales: F64,
    *,
    std_floor: float = 1e-3,
    eps: float = 1e-4,
    delta: float = 0.1,
    group_sizes: tuple[int, ...] = GROUP_SIZES,
) -> tuple[SeparabilityRow, ...]:
    """Rows for each aggregation and group size; `scores` `[N, M, R]` raw, `weights` and `scales` `[R]`.

    Two members are distinct where |dA| > delta; the levels of a group are its largest subset of pairwise distinct
    members.
    """
    if scores.ndim != 3 or scores.shape[1] < max(group_sizes) or min(group_sizes) < 2:
        raise ValueError(
            f"separability: expected scores [N, M >= {max(group_sizes)}, R] and group sizes from 2, "
            f"got scores {scores.shape} and sizes {group_sizes}"
        )
    rows = []
    for name, aggregate in AGGREGATIONS.items():
        for size in group_sizes:
            advantages = aggregate(scores[:, :size], weights, scales, std_floor, eps).advantages
            rows.append(_row(name, advantages, delta))
    return tuple(rows)


def distinct_levels(advantages: F64, delta: float) -> int:
    """Size of the largest subset whose members pairwise differ by more than delta (greedy from below is optimal)."""
    levels, top = 0, -np.inf
    for value in np.sort(advantages):
        if value - top > delta:
            levels, top = levels + 1, value
    return levels


def plot_separability(path: Path, rows: tuple[SeparabilityRow, ...]) -> None:
    """Two panels over the group size: distinct levels and mean pairwise gap."""
    from matplotlib.figure import Figure

    from rl.evaluation.figures import COLOURS, style

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in zip(AGGREGATIONS, COLOURS, strict=False):
        mine = [row for row in rows if row.aggregation == name]
        sizes = [row.group_size for row in mine]
        left.plot(sizes, [row.distinct_levels for row in mine], color=colour, marker="o", label=name)
        right.plot(sizes, [row.mean_gap for row in mine], color=colour, marker="o", label=name)
        for aggregation, size, levels in PAPER:
            if aggregation == name:
                left.scatter([size], [levels], marker="x", color=colour, label=f"{name}, LucidNFT v1")
    style(left, "distinct advantage levels", "group size", "levels")
    style(right, "mean pairwise |ΔA|", "group size", "|ΔA|")
    for panel in (left, right):
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _row(name: str, advantages: F64, delta: float) -> SeparabilityRow:
    size = advantages.shape[1]
    upper = np.triu_indices(size, k=1)
    gaps = np.abs(advantages[:, :, None] - advantages[:, None, :])[:, upper[0], upper[1]]
    levels = [distinct_levels(group, delta) for group in advantages]
    return SeparabilityRow(name, size, float(np.mean(levels)), float(gaps.mean()), float(gaps.max(axis=1).mean()))
