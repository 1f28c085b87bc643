"""What the tests of policies and of restoring share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[Any], Path]:
    """The adapter file of a run with this configuration, with random values."""
    import torch

    from rl.export import LORA_FILE, export_lora
    from rl.policies import load_policy
    from rl.policies.lora import POLICY, Adapters, take_snapshot

    def export(config: Any) -> Path:
        parameters = Adapters(load_policy(config.policy), POLICY).parameters(POLICY)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.normal_()
        export_lora(tmp_path, take_snapshot(parameters, 1), config, step=1, rewards=())
        return tmp_path / LORA_FILE

    return export
