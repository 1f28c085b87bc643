"""DiffusionNFT (arXiv 2509.16117), the x0-form of its published code; LucidNFT trains with it.

    v+ = (1 - beta) v_old + beta v_theta          v- = (1 + beta) v_old - beta v_theta
    x0+- = x_t - t v+-                            e+- = mean_pixels (x0+- - x0)^2 / sg( mean_pixels |x0+- - x0| )
    L = adv_clip_max / beta * E[ r e+ + (1 - r) e- ] + kl_weight * E[ (v_theta - v_ref)^2 ]

For a group sampled by an older version, the implicit policies are built around `anchor`: the newest old adapter, or
the one that sampled the group. The loss needs samples with rewards and a v_old, but v_old need not have drawn them.
With `newest` the gradient at v_theta = v_old is that of fresh groups with the weights r of older ones; with
`behaviour` it points back to where the older version was (tests/benchmarks/RESULTS.md, 1).

A one-step policy has no noise levels: its x0 at its own noise is written as the velocity x_t - x0 at t = 1, so the
loss is the same function of x0. The authors call this case unsupported; it runs only if the recipe asks for it.

With an advantage per cell (`advantage.spatial: map`) r, e+ and e- have one value per cell, and E includes the mean over
the positions: each position is pulled to x0 or pushed from it by its own r.

e+ and e- each have their own normaliser, detached, at least 1e-5. The factor adv_clip_max / beta makes the gradient
at v_theta = v_old proportional to 2 (2r - 1) adv_clip_max = 2A in the unclipped range, for any beta; there beta
sets only the curvature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl.advantages import to_reward_weight
from rl.config.objective import NFTSection
from rl.config.training import TrainingSection
from rl.flow.cells import WHOLE, Cells, over_cells
from rl.metrics import Key
from rl.objectives.base import Loss, MicroBatch, Objective
from rl.policies.base import Policy
from rl.policies.lora import OLD, Adapters
from rl.types import TrainGroup, TrainItem

MIN_NORMALISER = 1e-5


@dataclass(frozen=True, eq=False)
class NFTLoss:
    """Batch means; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    kl: Tensor
    """mean (v_theta - v_ref)^2 before its weight; 0 where the reference was skipped."""
    drift: Tensor
    """mean (v_theta - v_old)^2: distance of the policy from its anchor."""


def implicit_velocities(v_theta: Tensor, v_old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(v+, v-), the implicit positive and negative policies, eq. 6 of DiffusionNFT."""
    return (1 - beta) * v_old + beta * v_theta, (1 + beta) * v_old - beta * v_theta


def normalised_error(
    v: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, cells: Cells = WHOLE, normalised_by: Cells = WHOLE
) -> Tensor:
    """mean (x0_hat - x0)^2 / sg(mean |x0_hat - x0|) with x0_hat = x_t - t v; `[B]`, normaliser in float64.

    With `cells` `[B, rows, columns]`; `normalised_by` is those cells, or the whole sample.
    """
    error = x_t - t.view(-1, *[1] * (x0.ndim - 1)) * v - x0
    e = cells.mean(error.square())
    normaliser = normalised_by.mean(error.detach().double().abs()).clamp(min=MIN_NORMALISER).to(error.dtype)
    return e / (normaliser if normaliser.ndim == e.ndim else normaliser[:, None, None])


def nft_loss(
    v_theta: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    values: NFTSection,
    cells: Cells = WHOLE,
) -> NFTLoss:
    """The loss of a batch.

    Args:
        v_theta, v_old, v_ref: velocities `[B, C, h, w]`; `v_ref` None where `kl_weight` is 0.
        x0, x_t: clean and noised latents `[B, C, h, w]`, x_t = (1 - t) x0 + t eps.
        t: noise level `[B]` in [0, 1].
        r: reward weight `[B]`, or `[B, rows, columns]` of `cells`, in [0, 1], 1/2 + A / (2 adv_clip_max).
        values: beta, adv_clip_max, kl_weight and normaliser are read.
    """
    v_plus, v_minus = implicit_velocities(v_theta, v_old, values.beta)
    by = cells if values.normaliser == "cell" else WHOLE
    e_plus, e_minus = (normalised_error(v, x0, x_t, t, cells, by) for v in (v_plus, v_minus))
    policy = over_cells(r * e_plus + (1 - r) * e_minus, cells.shares(x0)).mean() * (values.adv_clip_max / values.beta)
    kl = policy.new_zeros(()) if v_ref is None else (v_theta - v_ref).square().mean()
    drift = (v_theta.detach() - v_old).square().mean()
    return NFTLoss(policy + values.kl_weight * kl, policy.detach(), kl.detach(), drift)


def old_decay(schedule: Literal["none", "ramp", "delayed"], s: int) -> float:
    """eta in theta_old <- eta theta_old + (1 - eta) theta after `s` optimiser steps (decay types 0, 1, 2)."""
    if schedule == "none":
        return 0.0
    if schedule == "ramp":
        return min(0.001 * s, 0.5)
    return 0.0 if s < 75 else min(0.0075 * (s - 75), 0.999)


def trained_timesteps(sigmas: Tensor, members: int, count: int, generator: torch.Generator) -> Tensor:
    """`[members, count]`: for each member the first `count` entries of a random permutation of the sampler's grid
    (`sigmas` without its final 0)."""
    grid = sigmas[:-1]
    order = torch.stack([torch.randperm(len(grid), generator=generator)[:count] for _ in range(members)])
    return grid[order]


@dataclass(frozen=True, eq=False)
class NFTBatch(MicroBatch):
    """M members of one group, each at one trained timestep."""

    condition: Any
    x0: Tensor
    """`[M, C, h, w]`"""
    eps: Tensor
    """`[M, C, h, w]`"""
    t: Tensor
    """`[M]`"""
    r: Tensor
    """`[M]` or `[M, rows, columns]`"""


class NFTObjective(Objective[NFTBatch]):
    """The loss above as the learner trains it."""

    def __init__(self, policy: Policy, adapters: Adapters, config: TrainingSection) -> None:
        super().__init__(policy, adapters, config)
        if not isinstance(config.objective, NFTSection):
            raise TypeError(f"NFTObjective: expected an NFTSection, got {type(config.objective).__name__}")
        self._config = config.objective
        self._cells = Cells.of(config.advantage)

    def old_decay(self, updates: int) -> float:
        return old_decay(self._config.old_decay.schedule, updates)

    def forward(self, batch: NFTBatch) -> Loss:
        x_t = self.policy.noised(batch.x0, batch.eps, batch.t)
        v_ref = None
        with torch.no_grad():
            if self._config.kl_weight > 0:
                with self.adapters.using(self.adapters.reference):
                    v_ref = self._velocity(x_t, batch)
            with self.adapters.using(OLD):
                v_old = self._velocity(x_t, batch)
        self._cells.check(batch.r, batch.x0)
        loss = nft_loss(
            self._velocity(x_t, batch), v_old, v_ref, batch.x0, x_t, self._level(batch), batch.r, self._config,
            self._cells,
        )  # fmt: skip
        terms = {Key.LOSS_POLICY: loss.policy, Key.LOSS_KL: loss.kl, Key.LOSS_DRIFT: loss.drift}
        return Loss(loss.total * batch.share, {key: term * batch.share for key, term in terms.items()})

    def _velocity(self, x_t: Tensor, batch: NFTBatch) -> Tensor:
        prediction = self.policy.prediction(x_t, batch.t, [batch.condition]).float()
        if self.policy.section.prediction == "velocity":
            return prediction
        return x_t - self.policy.clean(x_t, prediction, batch.t)

    def _level(self, batch: NFTBatch) -> Tensor:
        return batch.t if self.policy.section.prediction == "velocity" else torch.ones_like(batch.t)

    def micro_batches(self, items: Sequence[TrainItem], version: int) -> Iterator[NFTBatch]:
        """Timestep-major: every update sees every group."""
        prepared = [(item, *self._prepare(item)) for item in items if isinstance(item, TrainGroup)]
        for slot in range(self.run_config.slots):
            for item, condition, timesteps, generator in prepared:
                x0 = torch.from_numpy(np.array(item.group.latents))
                eps = torch.randn(x0.shape, generator=generator)
                r = torch.from_numpy(to_reward_weight(item.advantages, self._config.adv_clip_max)).float()
                for part in self.parts(len(x0)):
                    on_device = (value[part].to(self.device) for value in (x0, eps, timesteps[:, slot], r))
                    share = (part.stop - part.start) / len(x0)
                    yield NFTBatch(item.task.ordinal, item.group.policy_version, share, condition, *on_device)

    def _prepare(self, item: TrainGroup) -> tuple[Any, Tensor, torch.Generator]:
        condition = self.policy.condition_of(item.task)
        generator = self.generator(item.task.ordinal)
        levels = self.policy.levels(self.run_config.sampler.steps_taken, condition)
        timesteps = trained_timesteps(levels, len(item.group.latents), self.run_config.slots, generator)
        return condition, timesteps, generator
