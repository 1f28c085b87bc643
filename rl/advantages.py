"""From the scores of a batch of groups to one advantage per member, and to DiffusionNFT's reward weight r.

Four aggregations, pure float64 numpy. The first two use the whole batch (every group of every rank), the others each
group alone:

    decoupled        LucidNFT (arXiv 2603.05947); the formula is NVIDIA's GDPO (arXiv 2601.05242)
    scalarised       DiffusionNFT (arXiv 2509.16117), as in its code; Flow-GRPO's global std is the same
    ... by_group     DanceGRPO (arXiv 2505.07818)
    attribute_aware  GDPO-SR (arXiv 2603.16769), its Attribute-aware Reward Function

Scores are `[N, G, R]`, or `[N, G, h, w, R]` per cell (`rl.spatial`): then every formula holds in each cell, and batch
statistics run over the cells too, with the divisor of N G independent values, because the cells of a member are not.
Therefore a constant map gives the advantage of its value, and permuted cells give permuted advantages.

`S = R / scale` is the score in the reward's natural unit. Every formula, `std_floor` and `eps` use that unit, so
rescaling a metric together with its `scale` changes nothing. Left out: clipping (part of the reward weight) and running
statistics over past batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rl.data.attributes import attribute_shares, detail_map
from rl.spatial import pooled
from rl.types import F64, SRTask

Flags = NDArray[np.bool_]


class Weighed(Protocol):
    """What an aggregation reads from the section of a reward or a stored score."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def scale(self) -> float: ...
    @property
    def attribute(self) -> str | None: ...


@dataclass(frozen=True, eq=False)
class AdvantageBatch:
    """Advantages of N groups of G members under R rewards, per cell or not."""

    advantages: F64
    """`[N, G]` or `[N, G, h, w]`, unclipped."""
    per_reward: F64
    """`[N, G, R]` or `[N, G, h, w, R]`, each reward's term before weights and fusion: its group z-score (decoupled),
    its centred score (scalarised), or its min-max score in 0..1 (attribute_aware)."""
    zero_variance: Flags
    """`[N, R]` or `[N, h, w, R]`, True where the reward's standard deviation in the group is below the floor. There
    `decoupled` and `attribute_aware` ignore the reward; `scalarised` only reports it."""


ROUNDING = 1e-12
"""Spread of rewards R in 0..1 below which differences are rounding errors."""


def decoupled(scores: Sequence[F64] | F64, weights: F64, scales: F64, std_floor: float, eps: float) -> AdvantageBatch:
    """Per-reward group z-score, weighted sum, batch z-score.

    scores: `[N, G, R]`, N arrays `[G, R]`, or `[N, G, h, w, R]`; weights, scales: `[R]`.

        A_k  = (S_k - mean_group S_k) / (std_group S_k + eps)    0 for the whole group where std_group S_k < std_floor
        A    = sum_k w_k A_k
        Ahat = (A - mean_batch A) / (std_batch A + eps)

    Standard deviations are unbiased. The floor is compared with the standard deviation before eps is added; a reward
    that is exactly constant in a group is always below the floor, even a floor of 0. Groups below the floor in every
    reward stay in the batch statistics: their zeros shrink std_batch.
    """
    scaled = _scaled(scores, weights, scales)
    spread = scaled.std(axis=1, ddof=1)
    flat = _under_floor(scaled, spread, std_floor)
    # np.where evaluates both branches: without the safe divisor, a flat group would divide by zero when eps is 0
    divisor = np.where(flat, 1.0, spread + eps)[:, None]
    z = np.where(flat[:, None], 0.0, (scaled - scaled.mean(axis=1, keepdims=True)) / divisor)
    fused = z @ weights
    return AdvantageBatch(_standardised(fused, eps), z, flat)


def scalarised(scores: Sequence[F64] | F64, weights: F64, scales: F64, std_floor: float, eps: float) -> AdvantageBatch:
    """Weighted sum of the rewards, centred in the group, over the standard deviation of the batch.

        S    = sum_k w_k S_k
        Ahat = (S - mean_group S) / (std_batch S + eps)

    As in DiffusionNFT's code, std_batch is the biased standard deviation of the sums before centring, so it includes
    the spread between easy and hard LR images. `std_floor` only affects `zero_variance`.
    """
    scaled = _scaled(scores, weights, scales)
    centred = scaled - scaled.mean(axis=1, keepdims=True)
    fused = scaled @ weights
    divisor = fused.std() + eps
    advantages = np.zeros_like(fused) if np.ptp(fused) == 0.0 else (centred @ weights) / divisor
    return AdvantageBatch(advantages, centred, _under_floor(scaled, scaled.std(axis=1, ddof=1), std_floor))


def scalarised_by_group(
    scores: Sequence[F64] | F64, weights: F64, scales: F64, std_floor: float, eps: float
) -> AdvantageBatch:
    """Weighted sum of the rewards, standardised in the group: GRPO's advantage for a scalar reward (DanceGRPO).

        S    = sum_k w_k S_k
        Ahat = (S - mean_group S) / (std_group S + eps)         0 for the whole group where all S are equal

    std_group is unbiased, as in torch. `std_floor` only affects `zero_variance`.
    """
    scaled = _scaled(scores, weights, scales)
    fused = scaled @ weights
    centred = fused - fused.mean(axis=1, keepdims=True)
    tied = np.ptp(fused, axis=1, keepdims=True) == 0.0
    spread = np.where(tied, 1.0, fused.std(axis=1, ddof=1, keepdims=True) + eps)
    flat = _under_floor(scaled, scaled.std(axis=1, ddof=1), std_floor)
    return AdvantageBatch(np.where(tied, 0.0, centred / spread), scaled - scaled.mean(axis=1, keepdims=True), flat)


def attribute_aware(
    scores: Sequence[F64] | F64,
    rho_d: F64,
    fidelity: Flags,
    weights: F64,
    scales: F64,
    std_floor: float,
    eps: float,
) -> AdvantageBatch:
    """GDPO-SR's ARF, equations 7 and 8: fidelity rewards count on smooth images, perceptual ones on detailed images.

    scores: `[N, G, R]`, N arrays `[G, R]`, or `[N, G, h, w, R]`; rho_d: `[N]` share of detailed pixels of each HR
    image, or `[N, h, w]` of each cell (`rl.data.attributes`), rho_s = 1 - rho_d; fidelity: `[R]` True for
    full-reference rewards (FR: PSNR on Y in the paper), False for no-reference ones (NR: MANIQA and MUSIQ); weights,
    scales: `[R]`.

        s~_k = (S_k - min_group S_k) / (max_group S_k - min_group S_k)     0 for the whole group under the floor
        R    = rho_s mean_FR(s~) + rho_d mean_NR(s~)                       means weighted with w_k inside each set
        A    = (R - mean_group R) / (std_group R + eps)                    0 for the whole group where all R are equal

    Standard deviations are unbiased; eps is in the unit of R. The published code has eps 1e-8, equal weights and no
    floor: there a reward that is constant in a group is 0/0 and makes the group NaN. Here a reward below the floor is
    ignored, because min-max stretches any spread to 0..1 and would give noise the weight of a clear difference.

    The comparisons in the paper's table 6 correspond to rho_d 0 (FR only), 1 (NR only) and 0.5 (no adaptive weighting).
    ValueError as in the other aggregations; if rho_d or fidelity does not fit; and if a set that some image uses has no
    weight, because its mean is undefined.
    """
    scaled = _scaled(scores, weights, scales)
    rho_d, fidelity = np.asarray(rho_d, dtype=np.float64), np.asarray(fidelity, dtype=np.bool_)
    _check_attributes(scaled, rho_d, fidelity)
    low, span = scaled.min(axis=1, keepdims=True), np.ptp(scaled, axis=1)
    flat = _under_floor(scaled, scaled.std(axis=1, ddof=1), std_floor)
    minmax = np.where(flat[:, None], 0.0, (scaled - low) / np.where(flat, 1.0, span)[:, None])
    fused = _weighted_mean(minmax, 1.0 - rho_d, np.where(fidelity, weights, 0.0), "fidelity")
    fused += _weighted_mean(minmax, rho_d, np.where(fidelity, 0.0, weights), "perceptual")
    spread = fused.std(axis=1, ddof=1, keepdims=True)
    # two opposing rewards can cancel down to a rounding error, which standardisation would blow up to 1
    tied = np.ptp(fused, axis=1, keepdims=True) < ROUNDING
    centred = fused - fused.mean(axis=1, keepdims=True)
    return AdvantageBatch(np.where(tied, 0.0, centred / np.where(tied, 1.0, spread + eps)), minmax, flat)


def weights_and_scales(rewards: Sequence[Weighed]) -> tuple[F64, F64]:
    """`[R]` each, in the order of the rewards."""
    return np.array([reward.weight for reward in rewards]), np.array([reward.scale for reward in rewards])


def fidelity_flags(rewards: Sequence[Weighed]) -> Flags:
    """`[R]` True for full-reference rewards."""
    return np.array([reward.attribute == "fidelity" for reward in rewards])


def detail_shares(tasks: Sequence[SRTask], fixed: float | None, cell_px: int | None = None) -> F64:
    """rho_d `[N]`: `fixed`, or measured on each task's HR image; `[N, h, w]` in cells of `cell_px` pixels."""
    if fixed is not None:
        return np.full(len(tasks), fixed)
    return np.array([_detail_share(task, cell_px) for task in tasks])


def _detail_share(task: SRTask, cell_px: int | None) -> float | F64:
    if task.hr is None:
        raise ValueError(f"task {task.ordinal} '{task.lr_id}' has no HR image to take a detailed share from")
    if cell_px is None:
        return attribute_shares(task.hr).detail
    # a mean of ones may round to more than 1
    return np.clip(pooled(detail_map(task.hr), task.hr.shape[1:], cell_px), 0.0, 1.0)


def mixed(whole: AdvantageBatch, local: AdvantageBatch, local_weight: float) -> AdvantageBatch:
    """(1 - w) A(scores) + w A(maps); `per_reward` and `zero_variance` are those of the maps."""
    common = whole.advantages[:, :, None, None]
    return replace(local, advantages=(1.0 - local_weight) * common + local_weight * local.advantages)


def to_reward_weight(advantages: F64, adv_clip_max: float) -> F64:
    """DiffusionNFT's optimality r = clip(1/2 + A / (2 adv_clip_max), 0, 1); 1/2 is neither good nor bad."""
    if not adv_clip_max > 0:
        raise ValueError(f"adv_clip_max: expected a number above 0, got {adv_clip_max}; DiffusionNFT uses 5")
    return np.clip(0.5 + advantages / (2.0 * adv_clip_max), 0.0, 1.0)


def _scaled(scores: Sequence[F64] | F64, weights: F64, scales: F64) -> F64:
    """Scores in natural units, or an error that names what does not fit."""
    shapes = sorted({np.shape(group) for group in scores})
    if len(shapes) != 1:
        raise ValueError(
            f"advantages: expected one or more groups of one shape [G, R], got shapes {shapes}; "
            "a group with a missing member is dropped whole, not shortened"
        )
    stacked = np.asarray(scores, dtype=np.float64)
    rewards = len(weights)
    if stacked.ndim not in (3, 5) or stacked.shape[1] < 2 or stacked.shape[-1] != rewards or len(scales) != rewards:
        raise ValueError(
            f"advantages: expected scores [N, G >= 2, {rewards}] or [N, G >= 2, h, w, {rewards}] with {rewards} "
            f"weights and scales, got scores {stacked.shape}, {len(weights)} weights, {len(scales)} scales"
        )
    if not np.isfinite(stacked).all():
        raise ValueError(f"advantages: {int((~np.isfinite(stacked)).sum())} scores are not finite; drop their groups")
    return stacked / np.asarray(scales, dtype=np.float64)


def _check_attributes(scaled: F64, rho_d: F64, fidelity: Flags) -> None:
    groups, rewards = scaled.shape[0], scaled.shape[-1]
    shapes = {(groups,), (groups, *scaled.shape[2:-1])}
    if rho_d.shape not in shapes or fidelity.shape != (rewards,):
        raise ValueError(
            f"advantages: expected rho_d {' or '.join(map(str, sorted(shapes)))} and fidelity ({rewards},) for scores "
            f"{scaled.shape}, "
            f"got rho_d {rho_d.shape}, fidelity {fidelity.shape}"
        )
    outside = rho_d[~((rho_d >= 0.0) & (rho_d <= 1.0))]
    if outside.size:
        raise ValueError(f"advantages: expected detail shares rho_d in 0..1, got {outside.tolist()}")


def _weighted_mean(minmax: F64, share: F64, weights: F64, kind: str) -> F64:
    """minmax's shape without R, share times the weighted mean over the rewards; a set that no image uses may be
    empty."""
    total = float(weights.sum())
    listening = int((share > 0.0).sum())
    if not listening:
        return np.zeros(minmax.shape[:-1])
    if not total > 0.0:
        raise ValueError(
            f"advantages: {listening} of {len(share)} images take {kind} rewards, whose weights sum to {total}; "
            f"add a {kind} reward with a weight above 0, or set rho_d to {1 if kind == 'fidelity' else 0} everywhere"
        )
    fused = minmax @ weights
    mean: F64 = share.reshape(len(share), 1, *(share.shape[1:] or (1,) * (fused.ndim - 2))) * fused / total
    return mean


def _under_floor(scaled: F64, spread: F64, std_floor: float) -> Flags:
    # the std of n equal floats is not always 0, because their mean rounds: check for equality as well
    flat: Flags = (spread < std_floor) | (np.ptp(scaled, axis=1) == 0.0)
    return flat


def _standardised(values: F64, eps: float) -> F64:
    if np.ptp(values) == 0.0:
        return np.zeros_like(values)
    cells = int(np.prod(values.shape[2:]))
    standardised: F64 = (values - values.mean()) / (values.std(ddof=cells) + eps)
    return standardised
