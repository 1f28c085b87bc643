"""From noise to clean latents, for every kind of policy: the one way in which images are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.config.policy import SamplerConfig
from rl.flow.sampler import sample
from rl.flow.schedule import flow_sigmas
from rl.policies.base import Condition, FlowPolicy, Policy


def grid_sigmas(sampler: SamplerConfig, condition: Condition) -> Tensor:
    """The sampler's noise levels for one image, float32 `[steps + 1]` from 1 to 0."""
    return flow_sigmas(sampler.steps, shift=sampler.shift, tokens=condition.latents[0, 0].numel())


def draw(policy: Policy, noise: Tensor, conditions: Sequence[Condition], sampler: SamplerConfig) -> Tensor:
    """Noise `[B, C, h, w]` -> clean latents x0 `[B, C, h, w]`, one condition per run of B / len members.

    A flow takes `sampler.steps` steps of `sampler.solver`; a one-step policy takes one and reads nothing of `sampler`.
    """
    if not isinstance(policy, FlowPolicy):
        return policy.generate(noise, conditions)

    def velocity(x: Tensor, s: float) -> Tensor:
        return policy.velocity(x, x.new_full((len(x),), s), conditions).float()

    return sample(velocity, noise, grid_sigmas(sampler, conditions[0]), sampler.solver)


@torch.no_grad()
def one_call(policy: Policy, x: Tensor, condition: Condition) -> Tensor:
    """What one call of the backbone answers at `x` `[1, C, h, w]`: the velocity at t = 1/2, or the noise at t_diff."""
    if isinstance(policy, FlowPolicy):
        return policy.velocity(x, x.new_full((1,), 0.5), [condition])
    return policy.epsilon(x, [condition])
