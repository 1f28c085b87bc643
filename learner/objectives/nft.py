"""DiffusionNFT on the learner: one micro-batch is one group at one noise level per member.

A flow gives its velocity at x_t = (1 - t) x0 + t eps. A one-step policy has no noise levels: its prediction of x0 at
its own noise is written as the velocity x_t - x0_hat at t = 1, which makes the loss the same function of x0_hat. The
authors call that case unsupported; it runs only where the config forces it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.objectives.base import Loss, MicroBatch, Objective
from rl.advantages import to_reward_weight
from rl.config.objective import NFTConfig
from rl.config.run import RunConfig
from rl.metrics import Key
from rl.objectives.nft import nft_loss, noised, old_decay, trained_timesteps
from rl.policies.base import Condition, FlowPolicy, Policy
from rl.policies.lora import OLD, using
from rl.sampling import grid_sigmas
from rl.types import TrainGroup


@dataclass(frozen=True, eq=False)
class NFTBatch(MicroBatch):
    """One group at one trained timestep per member."""

    condition: Condition
    x0: Tensor
    """`[G, C, h, w]`"""
    eps: Tensor
    """`[G, C, h, w]`"""
    t: Tensor
    """`[G]`"""
    r: Tensor
    """`[G]`"""


class NFTObjective(Objective):
    """The loss of `rl.objectives.nft`."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        super().__init__(policy, config)
        if not isinstance(config.objective, NFTConfig):
            raise TypeError(f"NFTObjective: expected an nft section, got {config.objective.type}")
        self._policy = policy
        self._config = config.objective

    def old_decay(self, updates: int) -> float:
        return old_decay(self._config.old_decay.schedule, updates)

    def forward(self, batch: NFTBatch) -> Loss:  # type: ignore[override]  # its own micro-batches come back
        x_t = self._noised(batch)
        v_theta = self._velocity(x_t, batch)
        v_ref = None
        with torch.no_grad():
            with using(self.backbone, OLD):
                v_old = self._velocity(x_t, batch)
            if self._config.kl_weight > 0:
                with using(self.backbone, None):
                    v_ref = self._velocity(x_t, batch)
        loss = nft_loss(
            v_theta, v_old, v_ref, batch.x0, x_t, batch.t, batch.r,
            beta=self._config.beta, adv_clip_max=self._config.adv_clip_max, kl_weight=self._config.kl_weight,
        )  # fmt: skip
        return Loss(loss.total, {Key.LOSS_POLICY: loss.policy, Key.LOSS_KL: loss.kl, Key.LOSS_DRIFT: loss.drift})

    def _noised(self, batch: NFTBatch) -> Tensor:
        if isinstance(self._policy, FlowPolicy):
            return noised(batch.x0, batch.eps, batch.t)
        return self._policy.noised(batch.x0, batch.eps)

    def _velocity(self, x_t: Tensor, batch: NFTBatch) -> Tensor:
        if isinstance(self._policy, FlowPolicy):
            return self._policy.velocity(x_t, batch.t, [batch.condition]).float()
        return x_t - self._policy.clean(x_t, self._policy.epsilon(x_t, [batch.condition]).float())

    def micro_batches(self, groups: list[TrainGroup], version: int) -> Iterator[NFTBatch]:
        """Timestep-major: every update sees every group."""
        prepared = [(group, *self._prepare(group)) for group in groups]
        for slot in range(self.run_config.micro_batches_per_group):
            for group, condition, timesteps, generator in prepared:
                x0 = torch.from_numpy(np.array(group.group.latents))
                eps = torch.randn(x0.shape, generator=generator)
                r = torch.from_numpy(to_reward_weight(group.advantages, self._config.adv_clip_max)).float()
                on_device = (value.to(self.device) for value in (x0, eps, timesteps[:, slot], r))
                yield NFTBatch(group.group.policy_version, condition, *on_device)

    def _prepare(self, group: TrainGroup) -> tuple[Condition, Tensor, torch.Generator]:
        task = group.task
        condition = self._policy.encode(task.lr, task.scale, task.prompt)
        generator = self.generator(task.ordinal)
        members, slots = len(group.group.latents), self.run_config.micro_batches_per_group
        if not isinstance(self._policy, FlowPolicy):
            return condition, torch.ones(members, slots), generator
        sigmas = grid_sigmas(self.run_config.rollout.sampler, condition)
        return condition, trained_timesteps(sigmas, members, slots, generator), generator
