"""Objectives by name. Adding one: a file with its module, a config section, one line here, one row in the tests."""

from learner.objectives.base import Objective
from learner.objectives.grpo import GRPOObjective
from learner.objectives.nft import NFTObjective
from learner.objectives.preference import PreferenceObjective
from rl.config.run import RunConfig
from rl.policies.base import Policy

OBJECTIVES: dict[str, type[Objective]] = {
    "nft": NFTObjective,
    "gdpo": PreferenceObjective,
    "diffusion_dpo": PreferenceObjective,
    "grpo": GRPOObjective,
}


def build_objective(policy: Policy, config: RunConfig) -> Objective:
    """The module whose forward is the configured loss."""
    return OBJECTIVES[config.objective.type](policy, config)
