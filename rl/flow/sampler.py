"""The deterministic denoising loop and its steps.

With v the velocity eps - x0 and D = x - s v the predicted clean latent:

    euler   x' = x + (s' - s) v
    heun    x' = x + (s' - s) (v(x, s) + v(x_euler, s')) / 2          two model calls a step
    dpm2    x' = (s'/s) x + (1 - s'/s) (D + (D - D_prev) / (2 r)),    r = h_prev / h,  h = lambda' - lambda,
            lambda = log((1 - s) / s)                                  DPM-Solver++(2M), arXiv 2211.01095

The last step of both second-order solvers is first order: at s' = 0 lambda is infinite.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Solver = Literal["euler", "heun", "dpm2"]


def euler_step(x: Tensor, v: Tensor, s: float, s_next: float) -> Tensor:
    """One Euler step of dx/ds = v from noise level `s` to `s_next`."""
    return x + (s_next - s) * v


def dpm2_step(x: Tensor, d: Tensor, d_prev: Tensor | None, s_prev: float, s: float, s_next: float) -> Tensor:
    """One DPM-Solver++(2M) step; first order without `d_prev`, at s_prev = 1 (r is infinite) and at s_next = 0."""
    if d_prev is not None and s_next > 0.0 and s_prev < 1.0:
        h_prev, h = _log_snr(s) - _log_snr(s_prev), _log_snr(s_next) - _log_snr(s)
        d = d + (d - d_prev) * (h / (2.0 * h_prev))
    return (s_next / s) * x + (1.0 - s_next / s) * d


def _log_snr(s: float) -> float:
    return float(torch.logit(torch.tensor(1.0 - s, dtype=torch.float64)))


def sample(velocity: Velocity, noise: Tensor, sigmas: Tensor, solver: Solver) -> Tensor:
    """Integrate from `noise` `[B, C, h, w]` at sigmas[0] = 1 to the clean latents x0 `[B, C, h, w]`."""
    x, d_prev, s_prev = noise, None, 1.0
    levels = [float(s) for s in sigmas]
    for s, s_next in zip(levels[:-1], levels[1:], strict=True):
        v = velocity(x, s)
        d = x - s * v
        if solver == "dpm2":
            x = dpm2_step(x, d, d_prev, s_prev, s, s_next)
        elif solver == "heun" and s_next > 0.0:
            x = x + (s_next - s) * 0.5 * (v + velocity(euler_step(x, v, s, s_next), s_next))
        else:
            x = euler_step(x, v, s, s_next)
        d_prev, s_prev = d, s
    return x
