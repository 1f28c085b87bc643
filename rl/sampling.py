"""From noise to clean latents, for every kind of policy: the one way in which images are made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rl.config.policy import SamplerConfig
from rl.flow.sampler import Solver, sample
from rl.flow.schedule import flow_sigmas
from rl.flow.sde import (
    SDEStep,
    SDEWindow,
    gaussian_step,
    one_step_moments,
    sample_with_trajectory,
    sde_window,
)
from rl.policies.base import Condition, FlowPolicy, OneStepPolicy, Policy, member_noise
from rl.seeding import derive_seed
from rl.types import TrajectoryRecord


def grid_sigmas(sampler: SamplerConfig, condition: Condition) -> Tensor:
    """The sampler's noise levels for one image, float32 `[steps + 1]` from 1 to 0."""
    return flow_sigmas(sampler.steps, shift=sampler.shift, tokens=condition.latents[0, 0].numel())


def draw(policy: Policy, noise: Tensor, conditions: Sequence[Condition], sampler: SamplerConfig) -> Tensor:
    """Noise `[B, C, h, w]` -> clean latents x0 `[B, C, h, w]`, one condition per run of B / len members.

    A flow takes `sampler.steps` steps of `sampler.solver`, Euler's where that is stochastic (evaluation is not); a
    one-step policy takes one and reads nothing of `sampler`.
    """
    if not isinstance(policy, FlowPolicy):
        return policy.generate(noise, conditions)

    def velocity(x: Tensor, s: float) -> Tensor:
        return policy.velocity(x, x.new_full((len(x),), s), conditions).float()

    return sample(velocity, noise, grid_sigmas(sampler, conditions[0]), ode_solver(sampler))


def ode_solver(sampler: SamplerConfig) -> Solver:
    """The deterministic solver of an evaluation; Euler's where groups are sampled stochastically."""
    return "euler" if sampler.solver == "sde" else sampler.solver


def step_window(sampler: SamplerConfig, seed: int, iteration: int) -> SDEWindow:
    """The stochastic and trained steps of one iteration of a run."""
    sde = sampler.sde
    return sde_window(
        sde.window, sampler.steps, seed=seed, iteration=iteration, size=sde.size, every=sde.every, fraction=sde.fraction
    )


def draw_trajectory(
    policy: FlowPolicy,
    noise: Tensor,
    condition: Condition,
    sampler: SamplerConfig,
    window: SDEWindow,
    seeds: Sequence[int],
    *,
    keep_mean: bool,
) -> tuple[Tensor, TrajectoryRecord]:
    """Clean latents `[G, C, h, w]` and the record of the trained steps; a member's noise derives from its seed."""
    sigmas, shape = grid_sigmas(sampler, condition), policy.latent_shape(condition)
    noises = [
        member_noise([derive_seed(seed, "sde", k) for seed in seeds], shape, noise.device) for k in window.stochastic
    ]

    def velocity(x: Tensor, s: float) -> Tensor:
        return policy.velocity(x, x.new_full((len(x),), s), [condition]).float()

    with exact_attention(noise.device):
        x0, taken = sample_with_trajectory(
            velocity, noise, sigmas, window, sampler.sde.step, sampler.sde.noise_level, noises, keep_mean=keep_mean
        )
    mean = None if taken.mean_old is None else taken.mean_old.cpu().numpy()
    x, x_next, logp = (value.cpu().numpy() for value in (taken.x, taken.x_next, taken.logp_old))
    return x0, TrajectoryRecord(taken.steps, x, x_next, logp, mean)


@torch.no_grad()
def draw_one_step_trajectory(
    policy: OneStepPolicy, noise: Tensor, condition: Condition, std: float, seeds: Sequence[int], *, keep_mean: bool
) -> tuple[Tensor, TrajectoryRecord]:
    """The same of a one-step policy whose latents are made the mean of a Gaussian: x is the noised LR latents."""
    z_t = policy.noised(condition.latents.expand(len(noise), -1, -1, -1), noise)
    n = member_noise([derive_seed(seed, "sde", 0) for seed in seeds], policy.latent_shape(condition), noise.device)
    with exact_attention(noise.device):
        taken = one_step_gaussian(policy, z_t, condition, std, noise=n)
    x_next = taken.x_next.detach()
    recorded = (value.detach()[None].cpu().numpy() for value in (z_t, x_next, taken.logp, taken.moments.mean))
    x, action, logp, mean = recorded
    return x_next, TrajectoryRecord((0,), x, action, logp, mean if keep_mean else None)


def one_step_gaussian(
    policy: OneStepPolicy, z_t: Tensor, condition: Condition, std: float, *, noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> SDEStep:  # fmt: skip
    """x' ~ N(x0(z_t), std^2) of a one-step policy, drawn by `noise` or evaluated at `x_next`, all `[B, C, h, w]`."""
    with torch.enable_grad():  # for bit-equal rollouts, see RolloutWorker
        x0 = policy.clean(z_t, policy.epsilon(z_t, [condition]).float())
    return gaussian_step(one_step_moments(x0, std), noise=noise, x_next=x_next)


def join_trajectories(records: Sequence[TrajectoryRecord]) -> TrajectoryRecord:
    """One group from the records of its micro-batches of members."""
    means = [record.mean for record in records if record.mean is not None]
    x, x_next, logp = (np.concatenate([getattr(r, name) for r in records], axis=1) for name in ("x", "x_next", "logp"))
    return TrajectoryRecord(records[0].steps, x, x_next, logp, np.concatenate(means, axis=1) if means else None)


@contextmanager
def exact_attention(device: torch.device) -> Iterator[None]:
    """One attention kernel for rollout and training: on the CPU torch takes another one where a gradient is needed,
    whose rounding would make a fresh ratio differ from 1."""
    if device.type != "cpu":
        yield
        return
    with sdpa_kernel([SDPBackend.MATH]):
        yield


@torch.no_grad()
def one_call(policy: Policy, x: Tensor, condition: Condition) -> Tensor:
    """What one call of the backbone answers at `x` `[1, C, h, w]`: the velocity at t = 1/2, or the noise at t_diff."""
    if isinstance(policy, FlowPolicy):
        return policy.velocity(x, x.new_full((1,), 0.5), [condition])
    return policy.epsilon(x, [condition])
