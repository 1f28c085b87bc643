"""From noise to clean latents by any sampler of a recipe, and recomputing the likelihood of each recorded step.

Rollout and training compute a step with the same functions here, so a fresh likelihood ratio is exactly 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rl.config.rollout import ODESection, SDESection, StochasticSection
from rl.flow.cells import WHOLE, Cells
from rl.flow.sampler import Velocity, sample
from rl.flow.sde import SDEStep, gaussian_step, one_step_moments, sample_with_trajectory, sde_step, sde_window
from rl.seeding import derive_seed
from rl.types import TrajectoryRecord


def draw(velocity: Velocity, noise: Tensor, sigmas: Tensor, sampler: ODESection) -> Tensor:
    """Noise `[B, C, h, w]` -> clean latents by an ODE solver."""
    return sample(velocity, noise, sigmas, sampler.solver)


def flow_trajectory(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Tensor,
    sampler: StochasticSection,
    seeds: Sequence[int],
    iteration_seed: tuple[int, int],
    *,
    keep_mean: bool,
    cells: Cells = WHOLE,
) -> tuple[Tensor, TrajectoryRecord]:
    """Clean latents `[G, C, h, w]` and the record of the trained steps."""
    sde, (seed, iteration) = sampler.sde, iteration_seed
    window = sde_window(
        sde.window, sampler.steps, seed=seed, iteration=iteration, size=sde.size, every=sde.every, fraction=sde.fraction
    )
    noises = [_step_noise(seeds, k, noise) for k in window.stochastic]
    with exact_attention(noise.device):
        return sample_with_trajectory(
            velocity, noise, sigmas, window, sde.step, sde.noise_level, noises, keep_mean=keep_mean, cells=cells
        )


def flow_transition(
    velocity: Velocity, x: Tensor, x_next: Tensor, sigmas: Tensor, sde: SDESection, k: int, cells: Cells = WHOLE
) -> SDEStep:
    """Step `k` of a trajectory, from `x` to the `x_next` that was drawn."""
    levels = [float(s) for s in sigmas]
    with exact_attention(x.device):
        v = velocity(x, levels[k])
    return sde_step(
        sde.step, x, v, levels[k], levels[k + 1], s_max=levels[1], noise_level=sde.noise_level, x_next=x_next,
        cells=cells,
    )  # fmt: skip


def gaussian_trajectory(
    image: Callable[[], Tensor], z_t: Tensor, std: float, seeds: Sequence[int], *, keep_mean: bool, cells: Cells = WHOLE
) -> tuple[Tensor, TrajectoryRecord]:
    """The same for a one-step policy: `image()` of the noised LR latents `z_t` becomes the mean of a Gaussian."""
    with exact_attention(z_t.device):
        taken = one_step(image, std, noise=_step_noise(seeds, 0, z_t), cells=cells)
    x_next = taken.x_next.detach()
    states = torch.stack([z_t, x_next]).detach().cpu().numpy()
    logp, mean = (value.detach()[None].cpu().numpy() for value in (taken.logp, taken.moments.mean))
    return x_next, TrajectoryRecord((0,), (0, 1), states, logp, mean if keep_mean else None)


def one_step(
    image: Callable[[], Tensor], std: float, *, noise: Tensor | None = None, x_next: Tensor | None = None,
    cells: Cells = WHOLE,
) -> SDEStep:  # fmt: skip
    """x' ~ N(x0, std^2), drawn with `noise` or evaluated at `x_next`, all `[B, C, h, w]`."""
    return gaussian_step(one_step_moments(image(), std), noise=noise, x_next=x_next, cells=cells)


def join_trajectories(records: Sequence[TrajectoryRecord]) -> TrajectoryRecord:
    """One group from the records of its micro-batches of members."""
    first = records[0]
    means = [record.mean for record in records if record.mean is not None]
    return TrajectoryRecord(
        first.steps,
        first.grid,
        np.concatenate([record.states for record in records], axis=1),
        np.concatenate([record.logp for record in records], axis=1),
        np.concatenate(means, axis=1) if means else None,
    )


@contextmanager
def exact_attention(device: torch.device) -> Iterator[None]:
    """One attention kernel for rollout and training: on the CPU torch uses another one where a gradient is needed, and
    its rounding would make a fresh ratio differ from 1."""
    if device.type != "cpu":
        yield
        return
    with sdpa_kernel([SDPBackend.MATH]):
        yield


def _step_noise(seeds: Sequence[int], k: int, like: Tensor) -> Tensor:
    """The noise of stochastic step `k`, each member's from its own seed: independent of its group and device."""
    draws = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(derive_seed(seed, "sde", k)))
        for seed in seeds
    ]
    return torch.stack(draws).to(like.device)
