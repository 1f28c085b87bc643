"""What the learner needs of an objective: groups in, micro-batches out, a loss per micro-batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rl.config.run import RunConfig
from rl.metrics import Key
from rl.policies.base import Policy
from rl.seeding import derive_seed
from rl.types import TrainGroup


@dataclass(frozen=True, eq=False)
class Loss:
    """One micro-batch's loss; `total` carries the gradient, `terms` are logged."""

    total: Tensor
    terms: Mapping[Key, Tensor]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward and backward works on; every objective adds its tensors."""

    policy_version: int
    """The adapter version that sampled the group."""


class Objective(nn.Module, ABC):
    """`forward(micro-batch) -> Loss`; policy, behaviour and reference predictions come from one base."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        super().__init__()
        self.backbone = policy.backbone
        self.run_config = config
        self.device = next(policy.backbone.parameters()).device

    @abstractmethod
    def micro_batches(self, groups: list[TrainGroup], version: int) -> Iterator[MicroBatch]:
        """All micro-batches of a rank, in an order in which every optimiser step sees every group. Random draws
        derive from (seed, ordinal) alone: a resumed run draws the same. `version` is the learner's newest."""

    @abstractmethod
    def forward(self, batch: MicroBatch) -> Loss:
        """The loss of one micro-batch."""

    def old_decay(self, updates: int) -> float:
        """eta of theta_old <- eta theta_old + (1 - eta) theta after a batch; 0 publishes the policy itself."""
        return 0.0

    def generator(self, ordinal: int) -> torch.Generator:
        """The random stream of one group."""
        return torch.Generator().manual_seed(derive_seed(self.run_config.seed, "train", ordinal))
