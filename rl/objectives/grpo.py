"""GRPO on the stochastic steps of a flow sampler: Flow-GRPO (arXiv 2505.05470), DanceGRPO (2505.07818), MixGRPO
(2507.21802) and GRPO-Guard (2510.22319).

    L = w mean_i max(-A_i r_i, -A_i clip(r_i, 1 - c, 1 + c)) + kl_weight KL,    A_i clipped to +-adv_clip_max = 5

for one step of the trajectory; r_i = exp(logp - logp_old), with logp a mean over the latent's values (rl.flow.sde).

    method            step       noise level   c                KL weight
    Flow-GRPO         flow_sde   0.7           1e-4             0.04 (PickScore 0.01)
    Flow-GRPO-Fast    cps        0.8           1e-5             0
    MixGRPO           flow_sde   0.7           1e-4             0
    DanceGRPO         dance      0.3           1e-4             0
    GRPO-Guard        flow_sde   0.7           2e-6 to 4e-6     0             w = 1 / dt
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.flow.sde import StepMoments


@dataclass(frozen=True, eq=False)
class GRPOLoss:
    """Means over the members; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    """With the step weight."""
    kl: Tensor
    """Before its weight; 0 where the reference was skipped."""
    clipped_low: Tensor
    """Share of members with r < 1 - c, whatever the sign of their advantage."""
    clipped_high: Tensor
    """Share of members with r > 1 + c."""
    max_deviation: Tensor
    """max |r - 1|: 0 on the behaviour itself, where rollout and training compute the same."""


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """float64 `[B]`: mean over C, h, w of (a - b)^2."""
    return (a - b).square().mean(dim=tuple(range(1, a.ndim)), dtype=torch.float64)


def ratio(logp: Tensor, logp_old: Tensor) -> Tensor:
    """r = exp(logp - logp_old)."""
    return (logp - logp_old).exp()


def guard_log_ratio(logp: Tensor, logp_old: Tensor, moments: StepMoments, mean_old: Tensor) -> Tensor:
    """log r of GRPO-Guard, `[B]`:  g (logp - logp_old) + mean (mu - mu_old)^2 / (2 g),   g = sigma_t sqrt(dt) = std.

    For x' = mu_old + g n this is mean(n (mu - mu_old)): the plain log-ratio without its negative drift and without its
    1 / g, so that one clip range fits every step. It needs log-densities, which CPS does not publish.

    flow_grpo's script takes the square's mean over the batch too (its `dim` is empty, which torch reads as all); the
    paper, verl-omni and Flow-Factory, and this function, take it for each member.
    """
    if not moments.density:
        raise ValueError("guard_log_ratio: expected a step with a log-density (flow_sde, dance), got cps")
    return (logp - logp_old) * moments.std + _mean_square(moments.mean, mean_old) / (2 * moments.std)


def reference_kl(moments: StepMoments, mean_ref: Tensor) -> Tensor:
    """mean (mu - mu_ref)^2 / (2 sigma_t^2), `[B]`, as Flow-GRPO's code has it.

    The KL of the two Gaussians, per value, would be 1 / dt times this for the SDEs; KL weights are published for the
    form without it.
    """
    return _mean_square(moments.mean, mean_ref) / (2 * moments.sigma_t**2)


def grpo_loss(
    r: Tensor,
    advantages: Tensor,
    kl: Tensor | None,
    *,
    clip: float,
    adv_clip_max: float,
    kl_weight: float,
    step_weight: float,
) -> GRPOLoss:
    """The loss of one step of the members.

    Args:
        r: ratios `[B]`, `ratio(...)` or `guard_log_ratio(...).exp()`.
        advantages: `[B]`.
        kl: `reference_kl` `[B]`; None where `kl_weight` is 0.
        step_weight: 1; for GRPO-Guard 1 / dt, which brings the steps' gradients to one magnitude (the paper, flow_grpo
            and verl-omni have it, Flow-Factory leaves it out).
    """
    advantages = advantages.clamp(-adv_clip_max, adv_clip_max)
    clipped = r.clamp(1 - clip, 1 + clip)
    policy = torch.maximum(-advantages * r, -advantages * clipped).mean() * step_weight
    divergence = policy.new_zeros(()) if kl is None else kl.mean()
    off = (r - 1).detach()
    low, high = (-off > clip).double().mean(), (off > clip).double().mean()
    total = policy + kl_weight * divergence
    return GRPOLoss(total, policy.detach(), divergence.detach(), low, high, off.abs().max())
