"""GDPO, the group direct preference objective of GDPO-SR (arXiv 2603.16769).

    L = -log sigmoid( -omega/2 sum_i A_i d_i )           i over the G members of a group, d_i in
    rl.objectives.preference

The published code uses omega = 5000 with the factor 1/2 and sums over the group without dividing by G. At policy =
reference, inside is 0 and L = ln 2. With G = 2 the advantages are +-1/sqrt(2), so GDPO is Diffusion-DPO with
beta = omega / sqrt(2). The paper writes per-pixel norms; its code, and therefore 5000, uses the mean.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rl.config.objective import GDPOSection
from rl.config.training import TrainingSection
from rl.flow.cells import Cells
from rl.objectives.preference import PreferenceBatch, PreferenceObjective, preference_loss
from rl.policies.base import Policy
from rl.policies.lora import Adapters
from rl.types import TrainGroup, TrainItem


def gdpo_coefficients(advantages: Tensor, omega: float) -> Tensor:
    """c_i = omega/2 A_i; advantages `[G]`, or `[G, rows, columns]` per cell, sum to 0 over the group."""
    return 0.5 * omega * advantages


def gdpo_loss(e_theta: Tensor, e_ref: Tensor, advantages: Tensor, omega: float) -> tuple[Tensor, Tensor]:
    """(L, inside) of one group; e_theta, e_ref, advantages `[G]`."""
    return preference_loss(e_theta - e_ref, gdpo_coefficients(advantages, omega))


class GDPOObjective(PreferenceObjective):
    """The loss above as the learner trains it."""

    def __init__(self, policy: Policy, adapters: Adapters, config: TrainingSection) -> None:
        super().__init__(policy, adapters, config)
        if not isinstance(config.objective, GDPOSection):
            raise TypeError(f"GDPOObjective: expected a GDPOSection, got {type(config.objective).__name__}")
        self._config = config.objective
        self.cells, self.judged = Cells.of(config.advantage), config.objective.judged

    def whole(self, items: Sequence[TrainItem]) -> Iterator[PreferenceBatch]:
        groups = [item for item in items if isinstance(item, TrainGroup)]
        prepared = [(item, *self._encoded(item), self.generator(item.task.ordinal)) for item in groups]
        for _ in range(self._config.draws):
            for item, condition, z, c, generator in prepared:
                own = self._config.noise == "member"
                eps = torch.randn(z.shape if own else (1, *z.shape[1:]), generator=generator).expand(z.shape)
                t = self.policy.random_levels(len(z) if own else 1, generator).expand(len(z))
                yield PreferenceBatch(
                    item.task.ordinal, item.group.policy_version, 1.0, condition, z, eps.to(self.device),
                    t.to(self.device), c,
                )  # fmt: skip

    def _encoded(self, item: TrainGroup) -> tuple[object, Tensor, Tensor]:
        z = self.policy.encode_hr(np.asarray(item.group.images)).float()
        advantages = torch.from_numpy(np.array(item.advantages)).float().to(self.device)
        condition = self.policy.condition_of(item.task)
        return condition, z, gdpo_coefficients(advantages, self._config.omega)
