"""GRPO on the learner: one micro-batch is one group at one trained step of its trajectory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objectives.base import Loss, MicroBatch, Objective
from rl.config.objective import GRPOConfig
from rl.config.run import RunConfig
from rl.flow.sde import SDEStep, sde_step
from rl.metrics import Key
from rl.objectives.grpo import grpo_loss, guard_log_ratio, ratio, reference_kl
from rl.policies.base import Condition, FlowPolicy, Policy
from rl.policies.lora import using
from rl.sampling import exact_attention, grid_sigmas, one_step_gaussian
from rl.types import TrainGroup


@dataclass(frozen=True, eq=False)
class GRPOBatch(MicroBatch):
    """One group at one step from noise level `s` to `s_next`."""

    condition: Condition
    x: Tensor
    """`[G, C, h, w]`"""
    x_next: Tensor
    """`[G, C, h, w]` the action that the rollout took."""
    logp_old: Tensor
    """float64 `[G]`"""
    mean_old: Tensor | None
    """`[G, C, h, w]`, for GRPO-Guard."""
    advantages: Tensor
    """`[G]`"""
    s: float
    s_next: float
    s_max: float
    fresh: bool
    """Sampled by the policy as it still is, so that every ratio must be 1."""


class GRPOObjective(Objective):
    """The loss of `rl.objectives.grpo`."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        super().__init__(policy, config)
        self._sde = config.rollout.sampler.sde
        forced = self._sde.one_step_std is not None
        if isinstance(policy, FlowPolicy) == forced or not isinstance(config.objective, GRPOConfig):
            raise TypeError(f"expected a multi-step flow and grpo, got {type(policy)} and {config.objective.type}")
        self._policy = policy
        self._config = config.objective

    def forward(self, batch: GRPOBatch) -> Loss:  # type: ignore[override]  # its own micro-batches come back
        step = self._step(batch)
        kl = None
        if self._config.kl_weight > 0:
            with torch.no_grad(), using(self.backbone, None):
                kl_mean = self._step(batch).moments.mean.detach()
            kl = reference_kl(step.moments, kl_mean)
        if batch.mean_old is not None:
            r = guard_log_ratio(step.logp, batch.logp_old, step.moments, batch.mean_old).exp()
        else:
            r = ratio(step.logp, batch.logp_old)
        loss = grpo_loss(
            r, batch.advantages, kl, clip=self._config.clip, adv_clip_max=self._config.adv_clip_max,
            kl_weight=self._config.kl_weight, step_weight=1 / step.moments.dt if self._config.weight_by_dt else 1.0,
        )  # fmt: skip
        terms = {
            Key.LOSS_POLICY: loss.policy,
            Key.LOSS_KL: loss.kl,
            Key.RATIO_CLIPPED_LOW: loss.clipped_low,
            Key.RATIO_CLIPPED_HIGH: loss.clipped_high,
            Key.RATIO_DEVIATION: loss.max_deviation,
        }
        if batch.fresh:
            # float64 likelihoods show a last-bit difference of one velocity value; a ratio is a float32 number
            terms[Key.RATIO_FRESH] = (r.detach().float() - 1).abs().max()
        return Loss(loss.total.float(), terms)

    def _step(self, batch: GRPOBatch) -> SDEStep:
        if not isinstance(self._policy, FlowPolicy):
            with exact_attention(self.device):
                return one_step_gaussian(
                    self._policy, batch.x, batch.condition, self._sde.one_step_std or 0.0, x_next=batch.x_next
                )
        t = batch.x.new_full((len(batch.x),), batch.s)
        with exact_attention(self.device):
            v = self._policy.velocity(batch.x, t, [batch.condition]).float()
        return sde_step(
            self._sde.step, batch.x, v, batch.s, batch.s_next,
            s_max=batch.s_max, noise_level=self._sde.noise_level, x_next=batch.x_next,
        )  # fmt: skip

    def micro_batches(self, groups: list[TrainGroup], version: int) -> Iterator[GRPOBatch]:
        """Step-major: every update sees every group."""
        conditions = [self._policy.encode(g.task.lr, g.task.scale, g.task.prompt) for g in groups]
        count = 0
        for slot in range(self.run_config.micro_batches_per_group):
            for group, condition in zip(groups, conditions, strict=True):
                fresh = group.group.policy_version == version and count < self.run_config.micro_batches_per_update
                yield self._batch(group, condition, slot, fresh=fresh)
                count += 1

    def _batch(self, group: TrainGroup, condition: Condition, slot: int, *, fresh: bool) -> GRPOBatch:
        taken = group.group.trajectory
        if taken is None:
            raise ValueError(
                f"group {group.task.ordinal} carries no trajectory; sample it with rollout.sampler.solver=sde"
            )
        levels = [1.0, 0.0]
        if isinstance(self._policy, FlowPolicy):
            levels = [float(s) for s in grid_sigmas(self.run_config.rollout.sampler, condition)]
        k = taken.steps[slot]
        x, x_next, logp = (torch.tensor(v[slot], device=self.device) for v in (taken.x, taken.x_next, taken.logp))
        mean = None if taken.mean is None else torch.tensor(taken.mean[slot], device=self.device)
        advantages = torch.tensor(group.advantages, device=self.device)
        version = group.group.policy_version
        return GRPOBatch(
            version, condition, x, x_next, logp, mean, advantages, levels[k], levels[k + 1], levels[1], fresh
        )
