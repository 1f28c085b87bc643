"""From the scores of a batch of groups to one advantage per member, and to DiffusionNFT's reward weight r.

Two aggregations, both over the whole batch (every group of every rank), pure float64 numpy:

    decoupled    LucidNFT (arXiv 2603.05947); the formula is GDPO's (arXiv 2601.05242), there named after its authors
    scalarised   DiffusionNFT (arXiv 2509.16117), as in its code

`S = R / scale` is the score in the reward's natural unit; every formula, `std_floor` and `eps` are in that unit, so
that rescaling a metric together with its `scale` changes nothing. Left out: clipping (it is part of the reward weight)
and running statistics over past batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.types import F64

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AdvantageBatch:
    """Advantages of N groups of G members under R rewards."""

    advantages: F64
    """`[N, G]`, unclipped."""
    per_reward: F64
    """`[N, G, R]` each reward's term before weights and fusion: its group z-score (decoupled) or its centred score
    (scalarised)."""
    zero_variance: Flags
    """`[N, R]` True where the reward's standard deviation in the group is under the floor. `decoupled` gives such a
    reward no say in that group; `scalarised` only reports it."""


Aggregation = Callable[[Sequence[F64] | F64, F64, F64, float, float], AdvantageBatch]


def decoupled(scores: Sequence[F64] | F64, weights: F64, scales: F64, std_floor: float, eps: float) -> AdvantageBatch:
    """Per-reward group z-score, weighted sum, batch z-score.

    scores: `[N, G, R]` or N arrays `[G, R]`; weights, scales: `[R]`.

        A_k  = (S_k - mean_group S_k) / (std_group S_k + eps)    0 for the whole group where std_group S_k < std_floor
        A    = sum_k w_k A_k
        Ahat = (A - mean_batch A) / (std_batch A + eps)

    Standard deviations are unbiased. The floor is compared with the bare standard deviation, before eps is added; a
    reward that is exactly constant in a group is always under the floor, even a floor of 0. Groups that are under the
    floor in every reward stay in the batch statistics: their zeros shrink std_batch.
    """
    scaled = _scaled(scores, weights, scales)
    spread = scaled.std(axis=1, ddof=1)
    flat = _under_floor(scaled, spread, std_floor)
    # np.where evaluates both branches: without the safe divisor a flat group divides by zero when eps is 0
    divisor = np.where(flat, 1.0, spread + eps)[:, None, :]
    z = np.where(flat[:, None, :], 0.0, (scaled - scaled.mean(axis=1, keepdims=True)) / divisor)
    fused = z @ weights
    return AdvantageBatch(_standardised(fused, eps), z, flat)


def scalarised(scores: Sequence[F64] | F64, weights: F64, scales: F64, std_floor: float, eps: float) -> AdvantageBatch:
    """Weighted sum of the rewards, centred in the group, over the standard deviation of the batch.

        S    = sum_k w_k S_k
        Ahat = (S - mean_group S) / (std_batch S + eps)

    As in DiffusionNFT's code, std_batch is the biased one of the sums before they are centred: it holds the difference
    between easy and hard LR images too. `std_floor` only fills `zero_variance`.
    """
    scaled = _scaled(scores, weights, scales)
    centred = scaled - scaled.mean(axis=1, keepdims=True)
    fused = scaled @ weights
    divisor = fused.std() + eps
    advantages = np.zeros_like(fused) if np.ptp(fused) == 0.0 else (centred @ weights) / divisor
    return AdvantageBatch(advantages, centred, _under_floor(scaled, scaled.std(axis=1, ddof=1), std_floor))


AGGREGATIONS: dict[str, Aggregation] = {"decoupled": decoupled, "scalarised": scalarised}


def to_reward_weight(advantages: F64, adv_clip_max: float) -> F64:
    """DiffusionNFT's optimality r = clip(1/2 + A / (2 adv_clip_max), 0, 1); 1/2 is neither good nor bad."""
    if not adv_clip_max > 0:
        raise ValueError(f"adv_clip_max: expected a number above 0, got {adv_clip_max}; DiffusionNFT uses 5")
    return np.clip(0.5 + advantages / (2.0 * adv_clip_max), 0.0, 1.0)


def _scaled(scores: Sequence[F64] | F64, weights: F64, scales: F64) -> F64:
    """`[N, G, R]` scores in natural units, or an error that names what does not fit."""
    shapes = sorted({np.shape(group) for group in scores})
    if len(shapes) != 1:
        raise ValueError(
            f"advantages: expected one or more groups of one shape [G, R], got shapes {shapes}; "
            "a group with a missing member is dropped whole, not shortened"
        )
    stacked = np.asarray(scores, dtype=np.float64)
    rewards = len(weights)
    if stacked.ndim != 3 or stacked.shape[1] < 2 or stacked.shape[2] != rewards or len(scales) != rewards:
        raise ValueError(
            f"advantages: expected scores [N, G >= 2, {rewards}] with {rewards} weights and scales, "
            f"got scores {stacked.shape}, {len(weights)} weights, {len(scales)} scales"
        )
    if not np.isfinite(stacked).all():
        raise ValueError(f"advantages: {int((~np.isfinite(stacked)).sum())} scores are not finite; drop their groups")
    return stacked / np.asarray(scales, dtype=np.float64)


def _under_floor(scaled: F64, spread: F64, std_floor: float) -> Flags:
    # the std of n equal floats is not always 0, because their mean rounds: ask for equality as well
    flat: Flags = (spread < std_floor) | (np.ptp(scaled, axis=1) == 0.0)
    return flat


def _standardised(values: F64, eps: float) -> F64:
    if np.ptp(values) == 0.0:
        return np.zeros_like(values)
    standardised: F64 = (values - values.mean()) / (values.std(ddof=1) + eps)
    return standardised
