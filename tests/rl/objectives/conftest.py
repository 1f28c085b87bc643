"""Objectives on tiny policies, as a learner builds them."""

from collections.abc import Callable
from typing import Any

import pytest


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


@pytest.fixture(scope="session")
def make_group() -> Callable[..., Any]:
    """A group of random pixels and latents of the tiny policies, 32 px a side; by default 4 members."""
    import numpy as np

    from rl.types import RolloutGroup, SRTask, TrainGroup

    def make(
        ordinal: int,
        advantages: tuple[float, ...] = (-1.2, 0.1, 1.4, -0.3),
        *,
        version: int | None = None,
        latents: tuple[int, int, int] = (16, 2, 2),
    ) -> Any:
        rng = np.random.default_rng(ordinal)
        lr = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
        members = len(advantages)
        images = rng.integers(0, 256, (members, 3, 32, 32), dtype=np.uint8)
        x0 = rng.standard_normal((members, *latents)).astype(np.float32)
        x0.flags.writeable = False
        sampled = ordinal + 5 if version is None else version
        group = RolloutGroup(ordinal, "photo", sampled, "digest", tuple(range(members)), x0, images)
        return TrainGroup(SRTask(ordinal, "photo", lr, None, 4, 0), group, np.array(advantages))

    return make
