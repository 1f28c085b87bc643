"""Stochastic steps of a flow sampler, their log-probabilities, and the choice of which steps are stochastic.

With v = eps - x0 the velocity, s' < s the next noise level, dt = s - s' > 0 and a the noise level of the method:

    flow_sde  Flow-GRPO, arXiv 2505.05470     sigma_t = a sqrt(s / (1 - s))
    dance     DanceGRPO, arXiv 2505.07818     sigma_t = a, the paper's eta
              x' = x - dt v - dt sigma_t^2 / (2 s) (x + (1 - s) v) + sigma_t sqrt(dt) n
    cps       Coefficients-Preserving Sampling, arXiv 2509.05952
              x' = (1 - s') x0^ + s' cos(a pi / 2) eps^ + s' sin(a pi / 2) n,   x0^ = x - s v,   eps^ = x + (1 - s) v

Both SDEs keep the marginals of the ODE dx/ds = v: x + (1 - s) v is s times the negative score. At s = 1 Flow-GRPO's
sigma_t is infinite; its code replaces s with the run's second level, in the denominator alone.

A log-probability is the mean over C, h, w, not the sum: exp(logp - logp_old) is the geometric mean of the values'
ratios, hence the small published clip ranges, 1e-4 to 2e-6. Steps are float32 (float64 where the inputs are);
log-probabilities are float64, because float32 has only 16 values between 1 and 1 + 2e-6, GRPO-Guard's clip range.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl.flow.cells import WHOLE, Cells
from rl.flow.sampler import Velocity, euler_step
from rl.seeding import derive_seed
from rl.types import TrajectoryRecord

StepKind = Literal["flow_sde", "cps", "dance"]
WindowKind = Literal["all", "random", "sliding", "fraction"]


@dataclass(frozen=True, eq=False)
class StepMoments:
    """x' ~ N(mean, std^2), independent over values."""

    mean: Tensor
    """`[B, C, h, w]`"""
    std: float
    """Of x': sqrt(dt) included. 0 where the step is deterministic."""
    dt: float
    """s - s' > 0."""
    density: bool
    """Whether `log_prob` is the logarithm of the density. CPS publishes -(x' - mean)^2, without 1 / (2 std^2) and
    constants, so its log-ratios are 2 std^2 times those of the density."""

    @property
    def sigma_t(self) -> float:
        """The coefficient that the published KL divides by: std / sqrt(dt) for the SDEs, std for CPS."""
        return self.std / math.sqrt(self.dt) if self.density else self.std


def _upcast(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sde(x: Tensor, v: Tensor, s: float, s_next: float, sigma_t: float) -> StepMoments:
    dt, drift = s - s_next, sigma_t**2 / (2 * s)
    mean = (1 - drift * dt) * x - (1 + drift * (1 - s)) * dt * v
    return StepMoments(mean, sigma_t * math.sqrt(dt), dt, density=True)


def flow_sde(x: Tensor, v: Tensor, s: float, s_next: float, s_max: float, noise_level: float) -> StepMoments:
    """Flow-GRPO's step; at s = 1, `s_max` < 1 replaces s in 1 - s. Noise level 0 is Euler's step."""
    if s == 1.0 and not 0.0 <= s_max < 1.0:
        raise ValueError(f"flow_sde: expected s_max in [0, 1) at s = 1, got {s_max}; pass the run's second noise level")
    return _sde(x, v, s, s_next, noise_level * math.sqrt(s / (1 - (s_max if s == 1.0 else s))))


def dance(x: Tensor, v: Tensor, s: float, s_next: float, s_max: float, noise_level: float) -> StepMoments:
    """DanceGRPO's step, sigma_t = eta at every s; `s_max` is not used. Noise level 0 is Euler's step."""
    return _sde(x, v, s, s_next, noise_level)


def cps(x: Tensor, v: Tensor, s: float, s_next: float, s_max: float, noise_level: float) -> StepMoments:
    """CPS's step: the coefficients of x0^ and of all noise stay 1 - s' and s'; `s_max` is not used.

    The code's sqrt(s'^2 - std^2) is s' cos(a pi / 2) for a in [0, 1] only; larger levels are refused.
    """
    if not 0.0 <= noise_level <= 1.0:
        raise ValueError(f"cps: expected a noise level in [0, 1], got {noise_level}")
    kept, std = s_next * math.cos(noise_level * math.pi / 2), s_next * math.sin(noise_level * math.pi / 2)
    mean = (1 - s_next) * (x - s * v) + kept * (x + (1 - s) * v)
    return StepMoments(mean, std, s - s_next, density=False)


STEPS: dict[StepKind, Callable[[Tensor, Tensor, float, float, float, float], StepMoments]] = {
    "flow_sde": flow_sde,
    "cps": cps,
    "dance": dance,
}


def log_prob(x_next: Tensor, moments: StepMoments, cells: Cells = WHOLE) -> Tensor:
    """float64 `[B]`, the mean over C, h, w of log N(x'; mean, std^2), or of -(x' - mean)^2 for CPS; `[B, rows,
    columns]` of `cells`.

    The gradient reaches only the mean: x' is an action that was taken, and through a drawn x' = mean + std n the
    gradient would cancel.
    """
    if moments.std <= 0:
        raise ValueError("log_prob: this step has std 0 (noise level 0, or CPS at s' = 0), so x' has no density")
    squared = (_upcast(x_next).detach() - moments.mean).square()
    mean = cells.mean(squared, dtype=torch.float64)
    if not moments.density:
        return -mean
    return -mean / (2 * moments.std**2) - math.log(moments.std) - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class SDEStep:
    """One step taken: x', its log-probability `[B]` or `[B, rows, columns]`, and the Gaussian that it came from."""

    x_next: Tensor
    logp: Tensor
    moments: StepMoments


def sde_step(
    kind: StepKind,
    x: Tensor,
    v: Tensor,
    s: float,
    s_next: float,
    *,
    s_max: float,
    noise_level: float,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
    cells: Cells = WHOLE,
) -> SDEStep:
    """The one stochastic step: the rollout passes `noise` and draws x', training passes the `x_next` that was drawn.

    Args:
        x, v: latents and velocity `[B, C, h, w]` at noise level `s`.
        s, s_next: 0 <= s_next < s <= 1.
        s_max: the run's second noise level, sigmas[1].
        noise, x_next: standard normal draw, or x' itself, `[B, C, h, w]`; exactly one of them.
    """
    if not 0.0 <= s_next < s <= 1.0:
        raise ValueError(f"sde_step: expected 0 <= s_next < s <= 1, got s {s} and s_next {s_next}")
    moments = STEPS[kind](_upcast(x), _upcast(v), s, s_next, s_max, noise_level)
    return gaussian_step(moments, noise=noise, x_next=x_next, cells=cells)


def one_step_moments(x0: Tensor, std: float) -> StepMoments:
    """A one-step generator's image latents `x0` `[B, C, h, w]` as the mean of a Gaussian policy of standard deviation
    `std`. Our construction: such a generator has no transition density of its own."""
    return StepMoments(_upcast(x0), std, 1.0, density=True)


def gaussian_step(
    moments: StepMoments, *, noise: Tensor | None = None, x_next: Tensor | None = None, cells: Cells = WHOLE
) -> SDEStep:
    """Draw x' with standard normal `noise`, or evaluate the `x_next` that was drawn; exactly one of them."""
    if noise is not None and x_next is None:
        x_next = moments.mean + moments.std * _upcast(noise)
    elif noise is not None or x_next is None:
        raise ValueError("expected either `noise` to draw x' or `x_next` to evaluate it")
    return SDEStep(_upcast(x_next), log_prob(x_next, moments, cells), moments)


@dataclass(frozen=True)
class SDEWindow:
    """Ascending indices of sampler steps; step k leads from sigmas[k] to sigmas[k + 1]."""

    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    """A subset of `stochastic`; smaller for 'fraction' alone."""


def sde_window(
    kind: WindowKind,
    steps: int,
    *,
    seed: int,
    iteration: int,
    size: int = 4,
    every: int = 25,
    fraction: float = 0.6,
) -> SDEWindow:
    """The stochastic and the trained steps of one iteration, a function of its arguments alone.

        all       every step but the last (Flow-GRPO)
        random    `size` steps in a row, at random in [0, steps // 2) (Flow-GRPO-Fast; size 2 to 4)
        sliding   `size` steps in a row, moved on by one after `every` iterations, from the last place back to 0
                  (MixGRPO, arXiv 2507.21802: 4 of 25 steps, every 25)
        fraction  every step but the last, a random floor(fraction (steps - 1)) of them trained (DanceGRPO: 0.6)

    The last step is never stochastic: its x' is the image, and CPS has no noise at s' = 0. Euler's last step gives
    x0^ = x - s v, which is also what DanceGRPO decodes. MixGRPO's code never trains step `steps - 2` and shrinks the
    window to nothing before it wraps; here the window is always full and visits all steps but the last. DanceGRPO draws
    the trained steps per member; here one draw serves the whole group.
    """
    last = steps - 1
    count = {"all": last, "fraction": int(last * fraction)}.get(kind, size)
    span = steps // 2 if kind == "random" else last
    if not 1 <= count <= span:
        raise ValueError(f"sde_window '{kind}': expected 1 to {span} steps of a run of {steps}, got {count}")
    draw = derive_seed(seed, "sde-window", iteration)
    if kind in ("random", "sliding"):
        start = (draw if kind == "random" else iteration // every) % (span - count + 1)
        window = tuple(range(start, start + count))
        return SDEWindow(stochastic=window, trained=window)
    order = torch.randperm(last, generator=torch.Generator().manual_seed(draw))
    return SDEWindow(stochastic=tuple(range(last)), trained=tuple(sorted(order[:count].tolist())))


@torch.no_grad()
def sample_with_trajectory(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Tensor,
    window: SDEWindow,
    kind: StepKind,
    noise_level: float,
    noises: Sequence[Tensor] | Tensor,
    *,
    keep_mean: bool,
    cells: Cells = WHOLE,
) -> tuple[Tensor, TrajectoryRecord]:
    """Integrate from `noise` `[G, C, h, w]` at sigmas[0] to clean latents x0 `[G, C, h, w]`: SDE steps in the window,
    Euler's elsewhere.

    `noises` holds one standard normal `[G, C, h, w]` for each stochastic step, in order. The caller draws them from one
    generator per member and step, so a member does not depend on its group, its device or the window's place.
    """
    if len(noises) != len(window.stochastic):
        raise ValueError(f"expected {len(window.stochastic)} noises, one per stochastic step, got {len(noises)}")
    x, levels = _upcast(noise), [float(s) for s in sigmas]
    draws = dict(zip(window.stochastic, noises, strict=True))
    states: dict[int, Tensor] = {}
    taken: list[SDEStep] = []
    for k, (s, s_next) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        v = velocity(x, s)
        if k not in draws:
            x = euler_step(x, _upcast(v), s, s_next)
            continue
        step = sde_step(kind, x, v, s, s_next, s_max=levels[1], noise_level=noise_level, noise=draws[k], cells=cells)
        if k in window.trained:
            taken.append(step)
            states |= {k: x, k + 1: step.x_next}
        x = step.x_next
    return x, TrajectoryRecord(
        steps=window.trained,
        grid=tuple(sorted(states)),
        states=torch.stack([states[k] for k in sorted(states)]).cpu().numpy(),
        logp=torch.stack([step.logp for step in taken]).cpu().numpy(),
        mean=torch.stack([step.moments.mean for step in taken]).cpu().numpy() if keep_mean else None,
    )
