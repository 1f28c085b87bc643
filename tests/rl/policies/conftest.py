"""Tiny policies of the real classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def load(tiny_flux2_folder: Path) -> Callable[..., Any]:
    """The tiny policy with LoRA of rank 4 and alpha 8, or what is given; `policy` holds other keys of the section."""
    from rl.config.policy import policy_section
    from rl.policies import load_policy

    def make(policy: dict[str, Any] | None = None, **lora: Any) -> Any:
        keys = {"path": str(tiny_flux2_folder), **(policy or {})}
        return load_policy(policy_section(lora={"rank": 4, "alpha": 8, **lora}, **keys))

    return make


@pytest.fixture(scope="session")
def velocity() -> Callable[[Any], Any]:
    """The tiny FLUX.2's prediction at two levels, of the same latents and LR image every time."""
    import numpy as np
    import torch

    @torch.no_grad()
    def predicted(policy: Any) -> Any:
        x = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
        condition = policy.condition(np.arange(192, dtype=np.uint8).reshape(3, 8, 8), 4)
        return policy.prediction(x, torch.tensor([0.3, 0.8]), [condition])

    return predicted


@pytest.fixture(scope="session")
def randomise() -> Callable[[dict[str, Any], int], None]:
    """Gives the parameters of an adapter random values, A and B alike."""
    import torch

    @torch.no_grad()
    def fill(parameters: dict[str, Any], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    return fill
