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
