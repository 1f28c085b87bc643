"""Diffusion-DPO (arXiv 2311.12908) on the pairs that `rl.preferences` chooses from a group.

    L = sum_p w_p [ -log sigmoid( -beta/2 (d_w - d_l) ) ] / sum_p w_p       d in rl.objectives.preference

Winner and loser share noise and level, as published. With one pair per group the weight is 1.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rl.config.objective import DiffusionDPOSection
from rl.config.training import TrainingSection
from rl.objectives.preference import PreferenceBatch, PreferenceObjective, preference_loss
from rl.policies.base import Policy
from rl.policies.lora import Adapters
from rl.types import PreferencePairs, TrainItem


def dpo_loss(d_winner: Tensor, d_loser: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(L, inside) of one pair; scalars."""
    return preference_loss(torch.stack([d_winner, d_loser]), torch.tensor([0.5 * beta, -0.5 * beta]))


class DiffusionDPOObjective(PreferenceObjective):
    """The loss above as the learner trains it: each micro-batch is one pair."""

    splits = False

    def __init__(self, policy: Policy, adapters: Adapters, config: TrainingSection) -> None:
        super().__init__(policy, adapters, config)
        if not isinstance(config.objective, DiffusionDPOSection):
            raise TypeError(f"DiffusionDPOObjective: expected its section, got {type(config.objective).__name__}")
        self._config = config.objective

    def whole(self, items: Sequence[TrainItem]) -> Iterator[PreferenceBatch]:
        pairs = [item for item in items if isinstance(item, PreferencePairs)]
        prepared = [(item, *self._encoded(item), self.generator(item.task.ordinal)) for item in pairs]
        coefficients = torch.tensor([0.5 * self._config.beta, -0.5 * self._config.beta], device=self.device)
        for _ in range(self._config.draws):
            for item, condition, latents, generator in prepared:
                for winner, loser, weight in zip(item.winners, item.losers, item.weights, strict=True):
                    z = torch.stack([latents[winner], latents[loser]])
                    eps = torch.randn((1, *z.shape[1:]), generator=generator).expand(z.shape).to(self.device)
                    t = self.policy.random_levels(1, generator).expand(2).to(self.device)
                    share = float(weight / item.weights.sum())
                    yield PreferenceBatch(
                        item.task.ordinal, item.group.policy_version, share, condition, z, eps, t, coefficients
                    )

    def _encoded(self, item: PreferencePairs) -> tuple[Any, dict[int, Tensor]]:
        """The condition, and member -> latents `[C, h, w]` of those that are in a pair."""
        members = sorted({*item.winners.tolist(), *item.losers.tolist()})
        z = self.policy.encode_hr(item.group.images[members]).float()
        return self.policy.condition_of(item.task), dict(zip(members, z, strict=True))
