"""GRPO on the stochastic steps of a flow sampler: Flow-GRPO (arXiv 2505.05470), DanceGRPO (2505.07818), MixGRPO
(2507.21802) and GRPO-Guard (2510.22319).

    L = w mean_i max(-A_i r_i, -A_i clip(r_i, 1 - c, 1 + c)) + kl_weight KL,    A_i clipped to +-adv_clip_max = 5

for one step of the trajectory; r_i = exp(logp - logp_old), with logp a mean over the latent's values (rl.flow.sde).

With an advantage per cell (`advantage.spatial: map`) logp is a mean over the values of a cell, every cell has its own
ratio and clip, and the loss is their mean by the cells' shares of the positions. A cell averages over fewer values, so
its log-ratio is larger: by the square root of the number of cells where the values are independent. `clip` is that of a
cell and has to grow by as much, if it is to clip as often.

    method            step       noise level   c                KL weight
    Flow-GRPO         flow_sde   0.7           1e-4             0.04 (PickScore 0.01)
    Flow-GRPO-Fast    cps        0.8           1e-5             0
    MixGRPO           flow_sde   0.7           1e-4             0
    DanceGRPO         dance      0.3           1e-4             0
    GRPO-Guard        flow_sde   0.7           2e-6 to 4e-6     0             w = 1 / dt
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.config.objective import GRPOSection
from rl.config.training import TrainingSection
from rl.flow.cells import WHOLE, Cells, over_cells
from rl.flow.sde import SDEStep, StepMoments
from rl.metrics import Key
from rl.objectives.base import Loss, MicroBatch, Objective
from rl.policies.base import Policy
from rl.policies.lora import Adapters
from rl.seeding import derive_seed
from rl.types import TrainGroup, TrainItem


@dataclass(frozen=True, eq=False)
class GRPOLoss:
    """Means over the members; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    """Including the step weight."""
    kl: Tensor
    """Before its weight; 0 where the reference was skipped."""
    clipped_low: Tensor
    """Share of members, or of their cells, with r < 1 - c, whatever the sign of their advantage."""
    clipped_high: Tensor
    """Likewise with r > 1 + c."""
    max_deviation: Tensor
    """max |r - 1|: 0 for the behaviour policy itself, where rollout and training compute the same."""


def _mean_square(a: Tensor, b: Tensor, cells: Cells = WHOLE) -> Tensor:
    """float64 `[B]`: mean over C, h, w of (a - b)^2; `[B, rows, columns]` of `cells`."""
    return cells.mean((a - b).square(), dtype=torch.float64)


def ratio(logp: Tensor, logp_old: Tensor) -> Tensor:
    """r = exp(logp - logp_old)."""
    return (logp - logp_old).exp()


def guard_log_ratio(
    logp: Tensor, logp_old: Tensor, moments: StepMoments, mean_old: Tensor, cells: Cells = WHOLE
) -> Tensor:
    """log r of GRPO-Guard, of the shape of logp:

        g (logp - logp_old) + mean (mu - mu_old)^2 / (2 g),   g = sigma_t sqrt(dt) = std

    For x' = mu_old + g n this is mean(n (mu - mu_old)): the plain log-ratio without its negative drift and its 1 / g,
    so that one clip range fits every step. It needs log-densities, which CPS does not publish.

    flow_grpo's script also averages the square over the batch (its `dim` is empty, which torch reads as all); the
    paper, verl-omni, Flow-Factory and this function average per member.
    """
    if not moments.density:
        raise ValueError("guard_log_ratio: expected a step with a log-density (flow_sde, dance), got cps")
    return (logp - logp_old) * moments.std + _mean_square(moments.mean, mean_old, cells) / (2 * moments.std)


def reference_kl(moments: StepMoments, mean_ref: Tensor) -> Tensor:
    """mean (mu - mu_ref)^2 / (2 sigma_t^2), `[B]`, as in Flow-GRPO's code.

    The KL of the two Gaussians, per value, would be 1 / dt times this for the SDEs; published KL weights are for the
    form without that factor.
    """
    return _mean_square(moments.mean, mean_ref) / (2 * moments.sigma_t**2)


def grpo_loss(
    r: Tensor,
    advantages: Tensor,
    kl: Tensor | None,
    *,
    clip: float,
    adv_clip_max: float,
    kl_weight: float,
    step_weight: float,
    shares: Tensor | None = None,
) -> GRPOLoss:
    """The loss of one step of the members.

    Args:
        r: ratios `[B]`, `ratio(...)` or `guard_log_ratio(...).exp()`; `[B, rows, columns]` with `shares`
            `[rows, columns]`.
        advantages: like r.
        kl: `reference_kl` `[B]`; None where `kl_weight` is 0.
        step_weight: 1; for GRPO-Guard 1 / dt, which gives the steps' gradients equal magnitude (in the paper, flow_grpo
            and verl-omni; Flow-Factory leaves it out).
    """
    advantages = advantages.clamp(-adv_clip_max, adv_clip_max)
    clipped = r.clamp(1 - clip, 1 + clip)
    policy = over_cells(torch.maximum(-advantages * r, -advantages * clipped), shares).mean() * step_weight
    divergence = policy.new_zeros(()) if kl is None else kl.mean()
    off = (r - 1).detach()
    low, high = (-off > clip).double().mean(), (off > clip).double().mean()
    total = policy + kl_weight * divergence
    return GRPOLoss(total, policy.detach(), divergence.detach(), low, high, off.abs().max())


@dataclass(frozen=True, eq=False)
class GRPOBatch(MicroBatch):
    """M members of one group at the trained step `k`."""

    condition: Any
    k: int
    x: Tensor
    """`[M, C, h, w]`"""
    x_next: Tensor
    """`[M, C, h, w]`, the action that the rollout took."""
    logp_old: Tensor
    """float64 `[M]` or `[M, rows, columns]`"""
    mean_old: Tensor | None
    """`[M, C, h, w]`, for GRPO-Guard."""
    advantages: Tensor
    """Like `logp_old`."""
    fresh: bool
    """Sampled by the current policy, so every ratio must be 1."""


class GRPOObjective(Objective[GRPOBatch]):
    """The loss above as the learner trains it. The ratio is to the behaviour policy (the group carries its
    likelihoods), the KL is to the reference."""

    def __init__(self, policy: Policy, adapters: Adapters, config: TrainingSection) -> None:
        super().__init__(policy, adapters, config)
        if not isinstance(config.objective, GRPOSection):
            raise TypeError(f"GRPOObjective: expected a GRPOSection, got {type(config.objective).__name__}")
        self._config = config.objective
        self._cells = Cells.of(config.advantage)

    def forward(self, batch: GRPOBatch) -> Loss:
        mean_ref = None
        if self._config.kl_weight > 0:
            with torch.no_grad(), self.adapters.using(self.adapters.reference):
                mean_ref = self._step(batch).moments.mean.detach()
        self._cells.check(batch.advantages, batch.x)
        step = self._step(batch)
        kl = None if mean_ref is None else reference_kl(step.moments, mean_ref)
        if batch.mean_old is not None:
            r = guard_log_ratio(step.logp, batch.logp_old, step.moments, batch.mean_old, self._cells).exp()
        else:
            r = ratio(step.logp, batch.logp_old)
        loss = grpo_loss(
            r, batch.advantages, kl, clip=self._config.clip, adv_clip_max=self._config.adv_clip_max,
            kl_weight=self._config.kl_weight, step_weight=1 / step.moments.dt if self._config.weight_by_dt else 1.0,
            shares=self._cells.shares(batch.x),
        )  # fmt: skip
        terms = {
            Key.LOSS_POLICY: loss.policy,
            Key.LOSS_KL: loss.kl,
            Key.RATIO_CLIPPED_LOW: loss.clipped_low,
            Key.RATIO_CLIPPED_HIGH: loss.clipped_high,
        }
        maxima = {Key.RATIO_DEVIATION: loss.max_deviation}
        if batch.fresh:
            # float64 likelihoods reveal a last-bit difference in a single velocity value; compare ratios in float32
            maxima[Key.RATIO_FRESH] = (r.detach().float() - 1).abs().max()
        total = loss.total.float() * batch.share
        return Loss(total, {key: term * batch.share for key, term in terms.items()}, maxima)

    def _step(self, batch: GRPOBatch) -> SDEStep:
        return self.policy.transition(
            batch.x, batch.x_next, batch.condition, self.run_config.sampler, batch.k, self._cells
        )

    def micro_batches(self, items: Sequence[TrainItem], version: int) -> Iterator[GRPOBatch]:
        """`timesteps`: slot by slot, every group. `samples`: micro-batches of members in an order drawn for the batch,
        each with all its slots, in random order too."""
        groups = [item for item in items if isinstance(item, TrainGroup)]
        conditions = [self.policy.condition_of(g.task) for g in groups]
        for count, (at, part, slot) in enumerate(self._order(groups)):
            fresh = groups[at].group.policy_version == version and count < self.run_config.micro_batches_per_update
            yield self._batch(groups[at], conditions[at], part, slot, fresh=fresh)

    def _order(self, groups: Sequence[TrainGroup]) -> list[tuple[int, slice, int]]:
        """(group, members, slot) of every micro-batch."""
        slots = range(self.run_config.slots)
        parts = [(at, part) for at, group in enumerate(groups) for part in self.parts(len(group.advantages))]
        if self._config.order == "timesteps":
            return [(at, part, slot) for slot in slots for at, part in parts]
        seed = derive_seed(self.run_config.seed, "order", *(group.task.ordinal for group in groups))
        generator = torch.Generator().manual_seed(seed)
        shuffled = [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
        return [
            (at, part, slot)
            for at, part in shuffled
            for slot in torch.randperm(len(slots), generator=generator).tolist()
        ]

    def _batch(self, item: TrainGroup, condition: Any, part: slice, slot: int, *, fresh: bool) -> GRPOBatch:
        taken = item.group.trajectory
        if taken is None:
            raise ValueError(f"group {item.task.ordinal} carries no trajectory; sample it with a likelihood")
        arrays = (taken.before(slot), taken.after(slot), taken.logp[slot])
        x, x_next, logp = (torch.tensor(array[part], device=self.device) for array in arrays)
        mean = None if taken.mean is None else torch.tensor(taken.mean[slot][part], device=self.device)
        advantages = torch.tensor(item.advantages, device=self.device)
        return GRPOBatch(
            item.task.ordinal, item.group.policy_version, len(x) / len(advantages), condition, taken.steps[slot],
            x, x_next, logp, mean, advantages[part], fresh,
        )  # fmt: skip
