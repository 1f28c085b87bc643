"""GDPO and Diffusion-DPO on the learner: a micro-batch is one group, or its best and worst member, and one noise draw.

Latents are the group's images encoded again, as published: what the policy is trained on is the image that was scored,
rounding and clamping included. Policy and reference (adapters off) predict from the same noised latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.objectives.base import Loss, MicroBatch, Objective
from rl.config.objective import DiffusionDPOConfig, GDPOConfig
from rl.config.run import RunConfig
from rl.metrics import Key
from rl.objectives.gdpo import dpo_loss, gdpo_loss, sample_error
from rl.policies.base import Condition, OneStepPolicy, Policy
from rl.policies.lora import using
from rl.types import TrainGroup


@dataclass(frozen=True, eq=False)
class PreferenceBatch(MicroBatch):
    """M members of one group and one draw of their noise: all G of them for GDPO, 2 for Diffusion-DPO."""

    condition: Condition
    z: Tensor
    """`[M, C, h, w]` the images encoded again."""
    eps: Tensor
    """`[M, C, h, w]`; the members of a pair have the same, those of a group by `objective.noise`."""
    advantages: Tensor
    """`[M]`"""


class PreferenceObjective(Objective):
    """The losses of `rl.objectives.gdpo`."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        super().__init__(policy, config)
        if not isinstance(policy, OneStepPolicy) or not isinstance(config.objective, GDPOConfig | DiffusionDPOConfig):
            raise TypeError(f"expected a one-step policy and gdpo or diffusion_dpo, got {config.objective.type}")
        self._policy: OneStepPolicy = policy
        self._config = config.objective

    def forward(self, batch: PreferenceBatch) -> Loss:  # type: ignore[override]  # its own micro-batches come back
        z_t = self._policy.noised(batch.z, batch.eps)
        prediction = self._policy.epsilon(z_t, [batch.condition]).float()
        with torch.no_grad(), using(self.backbone, None):
            reference = self._policy.epsilon(z_t, [batch.condition]).float()
        e_theta, e_ref = (sample_error(p, batch.eps)[None] for p in (prediction, reference))
        a = batch.advantages[None]
        if isinstance(self._config, GDPOConfig):
            total, inside = gdpo_loss(e_theta, e_ref, a, self._config.omega)
        else:
            total, inside = dpo_loss(e_theta, e_ref, a, self._config.beta)
        terms = {
            Key.LOSS_POLICY: total.detach(),
            Key.LOSS_MARGIN: inside.detach().mean(),
            Key.LOSS_ERROR: e_theta.detach().mean(),
            Key.LOSS_DRIFT: (prediction.detach() - reference).square().mean(),
        }
        return Loss(total, terms)

    def micro_batches(self, groups: list[TrainGroup], version: int) -> Iterator[PreferenceBatch]:
        """Draw-major: every update sees every group."""
        prepared = [(group, *self._encode(group), self.generator(group.task.ordinal)) for group in groups]
        own = isinstance(self._config, GDPOConfig) and self._config.noise == "member"
        for _ in range(self._config.draws):
            for group, condition, z, advantages, generator in prepared:
                shape = z.shape if own else (1, *z.shape[1:])
                eps = torch.randn(shape, generator=generator).expand(z.shape)
                yield PreferenceBatch(group.group.policy_version, condition, z, eps.to(self.device), advantages)

    def _encode(self, group: TrainGroup) -> tuple[Condition, Tensor, Tensor]:
        """Condition, latents and advantages of the members that are trained."""
        task, advantages = group.task, group.advantages
        members = np.arange(len(advantages))
        if isinstance(self._config, DiffusionDPOConfig):
            members = np.array([advantages.argmax(), advantages.argmin()])
        z = self._policy.encode_hr(group.group.images[members]).float()
        condition = self._policy.encode(task.lr, task.scale, task.prompt)
        return condition, z, torch.from_numpy(advantages[members]).float().to(self.device)
