"""Variational score distillation in the form of OSEDiff (arXiv 2406.08177) and NAOSD: two scores, one gradient.

    z_t    = sqrt(abar_t) z + sqrt(1 - abar_t) eps
    x0(e)  = (z_t - sqrt(1 - abar_t) e) / sqrt(abar_t)
    grad   = (x0_fake - x0_real) / mean_{C,H,W} |z - x0_real|                 per sample
    L_VSD  = mean (z - sg(z - grad))^2            its gradient is 2 grad / numel
    L_fake = mean (e_fake(z_t) - eps)^2           trains the fake score on the generator's own latents

`rl.flow.ddpm` has the noising. The real score is a frozen multi-step model with classifier-free guidance; the fake
score is the same model with a LoRA.
"""

import torch
from torch import Tensor


def vsd_loss(z: Tensor, x0_fake: Tensor, x0_real: Tensor) -> Tensor:
    """Scalar; only `z` `[B, C, h, w]` gets a gradient, that of the distillation."""
    with torch.no_grad():
        distance = (z - x0_real).abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        target = z - (x0_fake - x0_real) / distance
    return torch.nn.functional.mse_loss(z, target)
