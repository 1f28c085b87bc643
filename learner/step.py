"""From train groups to losses: the micro-batches of one batch, and the module whose forward is the loss."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl.advantages import to_reward_weight
from rl.config.objective import NFTConfig
from rl.config.run import RunConfig
from rl.flow.schedule import flow_sigmas
from rl.objectives.nft import NFTLoss, nft_loss, noised, trained_timesteps
from rl.policies.base import Condition, Policy
from rl.policies.lora import OLD, using
from rl.seeding import derive_seed
from rl.types import TrainGroup


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One group at one trained timestep per member."""

    policy_version: int
    condition: Condition
    x0: Tensor
    """`[G, C, h, w]`"""
    eps: Tensor
    """`[G, C, h, w]`"""
    t: Tensor
    """`[G]`"""
    r: Tensor
    """`[G]`"""


class NFTModule(nn.Module):
    """forward(MicroBatch) -> NFTLoss; the policy, old and reference velocities come from one base."""

    def __init__(self, policy: Policy, config: NFTConfig) -> None:
        super().__init__()
        self.backbone = policy.backbone
        self._policy = policy
        self._config = config

    def forward(self, batch: MicroBatch) -> NFTLoss:
        x_t = noised(batch.x0, batch.eps, batch.t)
        conditions = [batch.condition]
        v_theta = self._policy.velocity(x_t, batch.t, conditions).float()
        v_ref = None
        with torch.no_grad():
            with using(self.backbone, OLD):
                v_old = self._policy.velocity(x_t, batch.t, conditions).float()
            if self._config.kl_weight > 0:
                with using(self.backbone, None):
                    v_ref = self._policy.velocity(x_t, batch.t, conditions).float()
        return nft_loss(
            v_theta, v_old, v_ref, batch.x0, x_t, batch.t, batch.r,
            beta=self._config.beta, adv_clip_max=self._config.adv_clip_max, kl_weight=self._config.kl_weight,
        )  # fmt: skip


def micro_batches(groups: list[TrainGroup], policy: Policy, config: RunConfig) -> Iterator[MicroBatch]:
    """All (group, timestep) micro-batches of a rank, timestep-major, so that every update sees every group.

    Noise and timesteps derive from (seed, ordinal) alone: a resumed run draws the same.
    """
    device = next(policy.backbone.parameters()).device
    prepared = [_prepare(group, policy, config, device) for group in groups]
    for slot in range(config.timesteps_per_member):
        for group, condition, timesteps, generator in prepared:
            x0 = torch.from_numpy(np.array(group.group.latents))
            eps = torch.randn(x0.shape, generator=generator)
            r = to_reward_weight(group.advantages, config.objective.adv_clip_max)
            yield MicroBatch(
                policy_version=group.group.policy_version,
                condition=condition,
                x0=x0.to(device),
                eps=eps.to(device),
                t=timesteps[:, slot].to(device),
                r=torch.from_numpy(r).float().to(device),
            )


def _prepare(
    group: TrainGroup, policy: Policy, config: RunConfig, device: torch.device
) -> tuple[TrainGroup, Condition, Tensor, torch.Generator]:
    sampler = config.rollout.sampler
    condition = policy.encode(group.task.lr, group.task.scale)
    sigmas = flow_sigmas(sampler.steps, shift=sampler.shift, tokens=condition.latents[0, 0].numel())
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "train", group.task.ordinal))
    members = len(group.group.latents)
    return group, condition, trained_timesteps(sigmas, members, config.timesteps_per_member, generator), generator
