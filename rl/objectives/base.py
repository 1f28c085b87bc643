"""What the learner needs from an objective: a batch in, micro-batches out, a loss for each.

A micro-batch holds some members of one group at one slot (a timestep, a step of a trajectory, a draw of noise). Its
loss is its contribution to the group's loss: over the micro-batches of a group and slot, contributions and gradients
sum to those of the whole group, with the group's own normalisers. Memory is that of one micro-batch: anchor and
reference predict before the policy's graph exists.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rl.config.training import TrainingSection
from rl.metrics import Key
from rl.policies.base import Policy
from rl.policies.lora import Adapters
from rl.seeding import derive_seed
from rl.types import TrainItem


@dataclass(frozen=True, eq=False)
class Loss:
    """One micro-batch's contribution; `total` carries the gradient."""

    total: Tensor
    terms: Mapping[Key, Tensor]
    """Logged; also contributions, which sum to the group's value over its micro-batches."""
    maxima: Mapping[Key, Tensor] = field(default_factory=dict)
    """Logged; the maximum over all micro-batches."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The input of one forward and backward pass; every objective adds its own tensors."""

    ordinal: int
    """Of the group."""
    policy_version: int
    """The adapter version that sampled the group."""
    share: float
    """Members in this micro-batch divided by members of the group."""


Batch = TypeVar("Batch", bound=MicroBatch)


class Objective(nn.Module, ABC, Generic[Batch]):
    """`forward(micro-batch) -> Loss`; policy, anchor and reference share one base model."""

    def __init__(self, policy: Policy, adapters: Adapters, config: TrainingSection) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(policy.modules)
        self.policy = policy
        self.adapters = adapters
        self.run_config = config
        self.device = policy.device

    @abstractmethod
    def micro_batches(self, items: Sequence[TrainItem], version: int) -> Iterator[Batch]:
        """All micro-batches of a rank, in the order in which `update_order` assigns them to updates. Each is made on
        demand, after the updates before it. Random draws derive from (seed, ordinal) alone, so a resumed run repeats
        them. `version` is the learner's newest."""

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The contribution of one micro-batch."""

    def old_decay(self, updates: int) -> float:
        """eta in theta_old <- eta theta_old + (1 - eta) theta after a batch; 0 publishes the policy itself."""
        return 0.0

    def generator(self, ordinal: int) -> torch.Generator:
        """The random stream of one group."""
        return torch.Generator().manual_seed(derive_seed(self.run_config.seed, "train", ordinal))

    def parts(self, count: int) -> list[slice]:
        """`count` members or pairs divided into micro-batches."""
        size = self.run_config.micro_batch
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]
