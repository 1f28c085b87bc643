"""The noise schedule of rectified-flow models: x_t = (1 - t) x0 + t eps, t from 1 (noise) to 0 (image)."""

import math
from typing import Literal

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor


def interpolated(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps; x0, eps `[B, C, h, w]`, t `[B]`."""
    t = t.view(-1, *[1] * (x0.ndim - 1))
    return (1 - t) * x0 + t * eps


def flow_sigmas(steps: int, *, shift: float | Literal["flux2"], tokens: int) -> Tensor:
    """Noise levels of a sampling run, float32 `[steps + 1]`, from 1 down to 0.

        s_k = e^mu u / (1 + (e^mu - 1) u),   u = 1, (steps-1)/steps, ..., 1/steps        then 0

    `shift` is e^mu; 'flux2' takes FLUX.2's empirical mu(tokens, steps), `tokens` being the target's token count.
    """
    mu = compute_empirical_mu(tokens, steps) if shift == "flux2" else math.log(shift)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist(), mu=mu)
    sigmas: Tensor = scheduler.sigmas
    return sigmas
