"""An adapter attached for restoring has the effect that it had in training, from every format that isrl writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.errors import InputError
from rl.export import LORA_FILE, export_lora
from rl.policies import load_policy
from rl.policies.base import Policy, member_noise
from rl.policies.lora import POLICY, Adapters, layer_names, take_snapshot
from rl.policies.lora_export import Format, export_as
from rl.restoration.adapter import attach_adapter


@torch.no_grad()
def predicted(policy: Policy) -> Tensor:
    for module in policy.modules.values():
        module.eval()
    condition = policy.condition(np.arange(768, dtype=np.uint8).reshape(3, 16, 16), 4)
    return policy.probe(condition, member_noise([1, 2], policy.latent_shape(condition), policy.device))


@pytest.fixture
def trained(tmp_path: Path) -> Callable[[Any], tuple[Tensor, Path, int]]:
    """What a policy with an adapter of some effect predicts, its exported file, and the number of its layers."""

    def train(config: Any) -> tuple[Tensor, Path, int]:
        policy = load_policy(config.policy)
        base = predicted(policy)
        parameters = (adapters := Adapters(policy, POLICY)).parameters(POLICY)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        moved = predicted(policy)
        assert (moved - base).abs().max() > 1e-2
        export_lora(tmp_path, take_snapshot(parameters, 1), config, step=1, rewards=())
        return moved, tmp_path / LORA_FILE, adapters.bound(POLICY)

    return train


@pytest.mark.parametrize("form", get_args(Format))
@pytest.mark.parametrize("kind", ["flux2sr", "naosd"])
def test_the_effect_is_that_of_training(
    form: Format, kind: str, trained: Callable[[Any], tuple[Tensor, Path, int]], run_config: Callable[..., Any],
    naosd_config: Callable[..., Any], tmp_path: Path,
) -> None:  # fmt: skip
    """Rank 4 and alpha 6, which no file says any more: the strength is in B."""
    make = {"flux2sr": run_config, "naosd": naosd_config}[kind]
    config = make("policy.lora.alpha=6")
    expected, file, layers = trained(config)
    policy = load_policy(config.policy)
    assert attach_adapter(policy, export_as(file, form, tmp_path / f"{form}.safetensors")) == layers
    torch.testing.assert_close(predicted(policy), expected, rtol=0, atol=2e-5)


def test_on_a_brief_base_it_is_float32_as_in_training(
    trained: Callable[[Any], tuple[Tensor, Path, int]], run_config: Callable[..., Any]
) -> None:
    config = run_config("policy.dtype=bfloat16", "policy.lora.alpha=6")
    expected, file, _ = trained(config)
    policy = load_policy(config.policy)
    attach_adapter(policy, file)
    torch.testing.assert_close(predicted(policy), expected, rtol=0, atol=0)
    dtypes = {name.rpartition("_A.")[1]: p.dtype for name, p in policy.modules["transformer"].named_parameters()}
    assert dtypes == {"": torch.bfloat16, "_A.": torch.float32}


def test_an_adapter_of_another_model_is_refused_by_its_file(
    trained: Callable[[Any], tuple[Tensor, Path, int]], run_config: Callable[..., Any],
    naosd_config: Callable[..., Any], flux2_folder: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    _, file, _ = trained(run_config())
    wider = load_policy(run_config(path=flux2_folder(num_attention_heads=4)).policy)
    for policy in (load_policy(naosd_config().policy), wider):
        with pytest.raises(InputError, match=str(file)):
            attach_adapter(policy, file)
    assert all(".lora_" not in name for name in layer_names(load_policy(run_config().policy).modules))
