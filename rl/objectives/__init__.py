"""Algorithms, one file each: formulas as pure functions, then the module that makes micro-batches and the loss.

To add one: its file, its section with its declarations and one line in `rl.config.objective.OBJECTIVES`, a recipe,
tests.
"""

from typing import TYPE_CHECKING

from rl.config.open_union import load
from rl.config.training import TrainingSection

if TYPE_CHECKING:
    from rl.objectives.base import Objective
    from rl.policies.base import Policy
    from rl.policies.lora import Adapters


def build_objective(policy: "Policy", adapters: "Adapters", config: TrainingSection) -> "Objective":
    """The module whose forward is the configured loss."""
    objective: Objective = load(config.objective.builder)(policy, adapters, config)
    return objective
