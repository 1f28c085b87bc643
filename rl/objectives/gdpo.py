"""Preference losses on one-step models: GDPO (GDPO-SR, arXiv 2603.16769) and Diffusion-DPO (arXiv 2311.12908).

    e_i(net) = mean_{C,H,W} (net(z~_i) - eps_i)^2            a scalar per sample; policy and reference share z~ and eps
    d_i      = e_i(theta) - e_i(ref)

    GDPO           inside = -omega/2 sum_i A_i d_i           i over the G members of a group
    Diffusion-DPO  inside = -beta/2 (d_w - d_l)              best and worst member
    both           L = -log sigmoid(inside), mean over groups

The published GDPO code has omega = 5000 with the factor 1/2, and sums over the group without dividing by G. At
policy = reference inside is 0 and L = ln 2. With G = 2 the advantages are +-1/sqrt(2), so GDPO is Diffusion-DPO at
beta = omega / sqrt(2). The paper writes per-pixel norms; its code, and therefore 5000, is for the mean.
"""

import torch
from torch import Tensor


def sample_error(prediction: Tensor, eps: Tensor) -> Tensor:
    """e_i: `[B, C, h, w]` predictions and noise -> `[B]`."""
    return (prediction - eps).square().flatten(1).mean(1)


def gdpo_loss(e_theta: Tensor, e_ref: Tensor, advantages: Tensor, omega: float) -> tuple[Tensor, Tensor]:
    """(loss, inside `[N]`) of N groups; `e_theta`, `e_ref`, `advantages` `[N, G]`, the last summing to 0 per group."""
    inside = -0.5 * omega * (advantages * (e_theta - e_ref)).sum(1)
    return _loss(inside), inside


def dpo_loss(e_theta: Tensor, e_ref: Tensor, advantages: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(loss, inside `[N]`) from the best and the worst member of each group, arguments as in `gdpo_loss`."""
    d = e_theta - e_ref
    best, worst = advantages.argmax(1, keepdim=True), advantages.argmin(1, keepdim=True)
    inside = -0.5 * beta * (d.gather(1, best) - d.gather(1, worst)).squeeze(1)
    return _loss(inside), inside


def _loss(inside: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(inside).mean()
