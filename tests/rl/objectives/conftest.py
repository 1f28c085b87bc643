"""Objectives on tiny policies, as a learner builds them."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def configure(run_config: Callable[..., Any], naosd_config: Callable[..., Any]) -> Callable[..., Any]:
    """The configuration of a run of one group a step, on the tiny policy of a type."""

    def make(policy: str, *overrides: str) -> Any:
        return {"flux2sr": run_config, "naosd": naosd_config}[policy](*overrides, "train.groups_per_step=1")

    return make


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """The objective of a run on a policy of its own, whose adapters start from `seed`; anchors are frozen."""
    import torch

    from rl.objectives import build_objective
    from rl.policies import load_policy
    from rl.policies.lora import OLD, POLICY, Adapters

    def make(config: Any, *, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        policy = load_policy(config.policy)
        return build_objective(policy, Adapters(policy, POLICY, OLD), config)

    return make


@pytest.fixture(scope="session")
def randomise() -> Callable[..., None]:
    """Give one adapter random values, A and B alike."""
    import torch

    def fill(objective: Any, name: str, seed: int, scale: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in objective.adapters.parameters(name).values():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    return fill
