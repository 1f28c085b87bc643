"""Diffusion-DPO (arXiv 2311.12908) on the pairs that `rl.preferences` chooses from a group.

    L = sum_p w_p [ -log sigmoid( -beta/2 (d_w - d_l) ) ] / sum_p w_p       d in rl.objectives.preference

Winner and loser share noise and level, as published. With one pair per group the weight is 1.

With an advantage per cell the winner is stitched from the best member of every cell and the loser from the worst one.
Where one member is best everywhere and one worst, this is the scalar case.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rl.config.objective import DiffusionDPOSection
from rl.config.training import TrainingSection
from rl.objectives.preference import PreferenceBatch, PreferenceObjective, preference_loss
from rl.policies.base import Policy
from rl.policies.lora import Adapters
from rl.types import I64, PreferencePairs, TrainItem


def dpo_loss(d_winner: Tensor, d_loser: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(L, inside) of one pair; scalars."""
    return preference_loss(torch.stack([d_winner, d_loser]), torch.tensor([0.5 * beta, -0.5 * beta]))


def stitched(members: Tensor, cells: I64, side: int) -> Tensor:
    """`[C, h, w]` from members `[n, C, h, w]`: every square of `side` comes from the member that `cells`
    `[rows, columns]` names."""
    h, w = members.shape[2:]
    member = torch.from_numpy(cells.repeat(side, axis=0).repeat(side, axis=1)[:h, :w])
    return members[member, :, torch.arange(h)[:, None], torch.arange(w)].permute(2, 0, 1)


class DiffusionDPOObjective(PreferenceObjective):
    """The loss above as the learner trains it: each micro-batch is one pair."""

    splits = False

    def __init__(self, policy: Policy, adapters: Adapters, config: TrainingSection) -> None:
        super().__init__(policy, adapters, config)
        if not isinstance(config.objective, DiffusionDPOSection):
            raise TypeError(f"DiffusionDPOObjective: expected its section, got {type(config.objective).__name__}")
        self._config = config.objective
        self._cell = config.advantage.pool

    def whole(self, items: Sequence[TrainItem]) -> Iterator[PreferenceBatch]:
        pairs = [item for item in items if isinstance(item, PreferencePairs)]
        prepared = [
            (item, self.policy.condition_of(item.task), self._latents(item), self.generator(item.task.ordinal))
            for item in pairs
        ]
        coefficients = torch.tensor([0.5 * self._config.beta, -0.5 * self._config.beta], device=self.device)
        for _ in range(self._config.draws):
            for item, condition, latents, generator in prepared:
                for z, weight in zip(latents, item.weights, strict=True):
                    eps = torch.randn((1, *z.shape[1:]), generator=generator).expand(z.shape).to(self.device)
                    t = self.policy.random_levels(1, generator).expand(2).to(self.device)
                    share = float(weight / item.weights.sum())
                    yield PreferenceBatch(
                        item.task.ordinal, item.group.policy_version, share, condition, z, eps, t, coefficients
                    )

    def _latents(self, item: PreferencePairs) -> list[Tensor]:
        """`[2, C, h, w]` of each pair: winner, loser. Members that are in no pair are not encoded."""
        chosen = np.stack([item.winners, item.losers], axis=1)
        members, at = np.unique(chosen, return_inverse=True)
        at, images = at.reshape(chosen.shape), item.group.images[members]
        if chosen.ndim == 2:
            z = self.policy.encode_hr(images).float()
            return [z[pair] for pair in torch.from_numpy(at)]
        if self._config.stitched == "latents":
            z = self.policy.encode_hr(images).float()
            return [torch.stack([stitched(z, cells, self._cell) for cells in pair]) for pair in at]
        pixels, side = torch.from_numpy(images), self._cell * self.policy.section.cell_px
        made = (torch.stack([stitched(pixels, cells, side) for cells in pair]).numpy() for pair in at)
        return [self.policy.encode_hr(pair).float() for pair in made]
