"""DiffusionNFT (arXiv 2509.16117), the x0-form of its published code; LucidNFT trains with it.

    v+ = (1 - beta) v_old + beta v_theta          v- = (1 + beta) v_old - beta v_theta
    x0+- = x_t - t v+-                            e+- = mean_pixels (x0+- - x0)^2 / sg( mean_pixels |x0+- - x0| )
    L = adv_clip_max / beta * E[ r e+ + (1 - r) e- ] + kl_weight * E[ (v_theta - v_ref)^2 ]

Each of e+ and e- has its own normaliser, detached, at least 1e-5. The factor adv_clip_max / beta makes the gradient
at v_theta = v_old proportional to 2 (2r - 1) adv_clip_max = 2A in the unclipped range, whatever beta is; there beta
sets only the curvature.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MIN_NORMALISER = 1e-5


@dataclass(frozen=True, eq=False)
class NFTLoss:
    """Batch means; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    kl: Tensor
    """mean (v_theta - v_ref)^2 before its weight; 0 where the reference was skipped."""
    drift: Tensor
    """mean (v_theta - v_old)^2: how far the policy is from the behaviour it learns from."""


def implicit_velocities(v_theta: Tensor, v_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(v+, v-), the implicit positive and negative policies, eq. 6 of DiffusionNFT."""
    return (1 - beta) * v_old + beta * v_theta, (1 + beta) * v_old - beta * v_theta


def normalised_error(v: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """mean (x0_hat - x0)^2 / sg(mean |x0_hat - x0|) with x0_hat = x_t - t v; `[B]`, normaliser in float64."""
    dims = tuple(range(1, x0.ndim))
    error = x_t - t.view(-1, *[1] * (x0.ndim - 1)) * v - x0
    normaliser = error.detach().double().abs().mean(dim=dims).clamp(min=MIN_NORMALISER)
    return error.square().mean(dim=dims) / normaliser.to(error.dtype)


def nft_loss(
    v_theta: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    *,
    beta: float,
    adv_clip_max: float,
    kl_weight: float,
) -> NFTLoss:
    """The loss of a batch.

    Args:
        v_theta, v_old, v_ref: velocities `[B, C, h, w]`; `v_ref` None where `kl_weight` is 0.
        x0, x_t: clean and noised latents `[B, C, h, w]`, x_t = (1 - t) x0 + t eps.
        t: noise level `[B]` in [0, 1].
        r: reward weight `[B]` in [0, 1], 1/2 + A / (2 adv_clip_max).
    """
    v_plus, v_minus = implicit_velocities(v_theta, v_old, beta)
    e_plus, e_minus = normalised_error(v_plus, x0, x_t, t), normalised_error(v_minus, x0, x_t, t)
    policy = (r * e_plus + (1 - r) * e_minus).mean() * (adv_clip_max / beta)
    kl = policy.new_zeros(()) if v_ref is None else (v_theta - v_ref).square().mean()
    drift = (v_theta.detach() - v_old).square().mean()
    return NFTLoss(policy + kl_weight * kl, policy.detach(), kl.detach(), drift)


def old_decay(schedule: Literal["none", "ramp", "delayed"], s: int) -> float:
    """eta of theta_old <- eta theta_old + (1 - eta) theta after `s` optimiser steps (decay types 0, 1, 2)."""
    if schedule == "none":
        return 0.0
    if schedule == "ramp":
        return min(0.001 * s, 0.5)
    return 0.0 if s < 75 else min(0.0075 * (s - 75), 0.999)


def ema_decay(maximum: float, s: int) -> float:
    """Warm-up of the evaluation EMA: min((1 + s) / (10 + s), maximum)."""
    return min((1 + s) / (10 + s), maximum)


def noised(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = t.view(-1, *[1] * (x0.ndim - 1))
    return (1 - t) * x0 + t * eps


def trained_timesteps(sigmas: Tensor, members: int, count: int, generator: torch.Generator) -> Tensor:
    """`[members, count]`: for each member the first `count` of a random permutation of the sampler's grid
    (the grid is `sigmas` without its final 0)."""
    grid = sigmas[:-1]
    order = torch.stack([torch.randperm(len(grid), generator=generator)[:count] for _ in range(members)])
    return grid[order]
