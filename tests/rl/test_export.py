"""The exported file is what diffusers loads: same velocity, same scale, readable header."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from rl.config.online import RunConfig
from rl.export import LORA_FILE, export_lora, read_lora_header
from rl.policies import load_policy
from rl.policies.lora import POLICY, Adapters, take_snapshot
from rl.restoration.adapter import attach_adapter
from rl.types import LoraSnapshot

RANK, ALPHA = 4, 6
TARGETS = ["attn_add", "attn_add_single", "attn_add_ffn"]


@torch.no_grad()
def velocity(policy: Any) -> Tensor:
    x = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    condition = policy.condition(np.arange(192, dtype=np.uint8).reshape(3, 8, 8), 4)
    policy.transformer.eval()
    return policy.prediction(x, torch.tensor([0.3, 0.8]), [condition])


@pytest.fixture
def config(run_config: Callable[..., RunConfig], request: pytest.FixtureRequest) -> RunConfig:
    targets = getattr(request, "param", "attn_add")
    lora = [f"policy.lora.{key}={value}" for key, value in (("rank", RANK), ("alpha", ALPHA), ("targets", targets))]
    return run_config(*lora, "run.name=night run", "seed=11")


@pytest.fixture
def trained(config: RunConfig) -> tuple[Tensor, LoraSnapshot]:
    """(velocity, snapshot) of a policy whose adapter has an effect."""
    policy = load_policy(config.policy)
    parameters = Adapters(policy, POLICY).parameters(POLICY)
    base = velocity(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    moved = velocity(policy)
    assert (moved - base).abs().max() > 1e-2
    return moved, take_snapshot(parameters, 3)


@pytest.mark.parametrize("config", TARGETS, indirect=True)
def test_diffusers_loads_the_file_with_the_same_effect(
    config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path
) -> None:
    """`transformer.load_lora_adapter`, trained at a scale of 1.5: velocities agree to 1e-6."""
    expected, snapshot = trained
    export_lora(tmp_path, snapshot, config, step=1, rewards=[])
    other = load_policy(config.policy)
    other.transformer.load_lora_adapter(str(tmp_path), weight_name=LORA_FILE, prefix="transformer")
    torch.testing.assert_close(velocity(other), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", TARGETS, indirect=True)
def test_flux2_pipeline_loads_the_folder(
    config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path
) -> None:
    """`Flux2Pipeline.load_lora_weights`, the call that users of FLUX.2 make, and back again by unloading."""
    expected, snapshot = trained
    export_lora(tmp_path, snapshot, config, step=1, rewards=[])
    other = load_policy(config.policy)
    base = velocity(other)
    pipeline = Flux2Pipeline(FlowMatchEulerDiscreteScheduler(), other.vae, None, None, other.transformer)
    pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(velocity(other), expected, rtol=0, atol=1e-6)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(velocity(other), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", TARGETS, indirect=True)
def test_restoring_needs_no_config(config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path) -> None:
    """Rank, alpha and modules come from the header."""
    expected, snapshot = trained
    file = export_lora(tmp_path, snapshot, config, step=1, rewards=[])
    other = load_policy(config.policy)
    attach_adapter(other, file)
    torch.testing.assert_close(velocity(other), expected, rtol=0, atol=1e-6)


def test_the_scale_is_in_the_weights(config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path) -> None:
    """Tools that read no alpha apply s = 1: B in the file is alpha / rank = 1.5 times the trained B, A is the same."""
    _, snapshot = trained
    written = load_file(export_lora(tmp_path, snapshot, config, step=1, rewards=[]))
    assert set(written) == set(snapshot.tensors)
    for name, value in snapshot.tensors.items():
        np.testing.assert_array_equal(written[name], value * np.float32(ALPHA / RANK if "lora_B" in name else 1))


def test_header_round_trip(config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path) -> None:
    """alpha = rank, since the scale is folded; what it was trained with stands beside the run's facts."""
    _, snapshot = trained
    header = read_lora_header(export_lora(tmp_path, snapshot, config, step=40, rewards=[]))
    assert (header["adapter"]["r"], header["adapter"]["lora_alpha"]) == (RANK, RANK)
    modules = {name.removeprefix("transformer.").rsplit(".lora_", 1)[0] for name in snapshot.tensors}
    assert header["adapter"]["target_modules"] == sorted(modules)
    facts = header["isrl"]
    assert (facts["run"], facts["step"], facts["digest"]) == ("night run", 40, snapshot.digest)
    assert (facts["rank"], facts["alpha"]) == (RANK, ALPHA)


def test_the_driver_writes_without_torch() -> None:
    code = "import sys, rl.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_card_names_what_was_trained(config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path) -> None:
    _, snapshot = trained
    export_lora(tmp_path, snapshot, config, step=40, rewards=[])
    card = (tmp_path / "README.md").read_text()
    for fact in ("# night run", "rank 4, alpha 6", "targets `attn_add`", "40 steps", "seed 11", snapshot.digest):
        assert fact in card


def test_nothing_partial_stays_behind(config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path) -> None:
    _, snapshot = trained
    export_lora(tmp_path / "lora", snapshot, config, step=1, rewards=[])
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["README.md", LORA_FILE]
    with safe_open(tmp_path / "lora" / LORA_FILE, framework="numpy") as handle:
        assert set(handle.keys()) == set(snapshot.tensors)


def test_another_dtype_is_refused(config: RunConfig, trained: tuple[Tensor, LoraSnapshot], tmp_path: Path) -> None:
    _, snapshot = trained
    with pytest.raises(ValueError, match="expected a float32 adapter, got bfloat16"):
        export_lora(tmp_path, replace(snapshot, dtype="bfloat16"), config, step=1, rewards=[])


def test_files_of_other_tools(tmp_path: Path) -> None:
    """A missing file and a file without rank are refused by name; a diffusers file without our part is read."""
    with pytest.raises(FileNotFoundError, match=r"no such LoRA file; a run writes it to <run.dir>/lora/"):
        read_lora_header(tmp_path / "none.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, bare)
    with pytest.raises(
        ValueError, match=r"metadata with transformer.r or unet.r or <component>.r in the header, found none"
    ):
        read_lora_header(bare)
    foreign = tmp_path / "foreign.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 8, "transformer.lora_alpha": 8})}
    save_file({"x": np.zeros(1, np.float32)}, foreign, metadata=metadata)
    assert read_lora_header(foreign) == {"adapter": {"r": 8, "lora_alpha": 8}, "isrl": {}}
