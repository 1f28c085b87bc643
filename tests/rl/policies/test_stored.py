"""What the headers of a policy's weights say, and which adapters they refuse before any weight is read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.errors import InputError, MissingInput
from rl.policies import load_policy
from rl.policies.lora_export import export_as
from rl.policies.stored import check_adapter, stored_tensors


def test_headers_say_what_the_model_has(run_config: Callable[..., Any], tiny_flux2_folder: Path) -> None:
    model = load_policy(run_config().policy).modules["transformer"]
    stored = stored_tensors(tiny_flux2_folder / "transformer")
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    assert {tensor.dtype for tensor in stored.values()} == {"F32"}
    assert stored_tensors(tiny_flux2_folder) == {}


def test_weights_in_parts_are_one_model(run_config: Callable[..., Any], tmp_path: Path) -> None:
    model: Any = load_policy(run_config().policy).modules["transformer"]
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert set(stored_tensors(tmp_path)) == set(model.state_dict())


def test_what_can_start_a_run_passes(
    exported: Callable[[Any], Path], run_config: Callable[..., Any], naosd_config: Callable[..., Any], tmp_path: Path
) -> None:
    """Its own layers at its own rank or a higher one, in its own names or another tool's."""
    for config, higher in (
        (run_config(), run_config("policy.lora.rank=8")),
        (naosd_config(), naosd_config("policy.lora.rank=8")),
    ):
        file = exported(config)
        check_adapter(file, config.policy)
        check_adapter(file, higher.policy)
        check_adapter(export_as(file, "kohya", tmp_path / "kohya.safetensors"), config.policy)


def test_what_cannot_is_refused_by_name(
    exported: Callable[[Any], Path], run_config: Callable[..., Any], naosd_config: Callable[..., Any],
    flux2_folder: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    file = exported(run_config())
    wider = flux2_folder(num_attention_heads=4)
    cases = {
        "is no layer of this model under any known name": naosd_config(),
        r"is for a layer transformer\.\S+ of shape \(32, 32\), this model's has \(64, 64\)": run_config(path=wider),
        "has rank 4, the run's adapter 2; write policy.lora.rank=4": run_config("policy.lora.rank=2"),
    }
    for message, config in cases.items():
        with pytest.raises(InputError, match=message) as refused:
            check_adapter(file, config.policy)
        assert str(file) in str(refused.value)
    with pytest.raises(MissingInput, match="no such LoRA file"):
        check_adapter(tmp_path / "nowhere.safetensors", run_config().policy)
    # layers that a file leaves open begin without an effect
    check_adapter(file, run_config("policy.lora.targets=attn_add_single").policy)
    wide = exported(run_config("policy.lora.targets=attn_add_single"))
    with pytest.raises(InputError, match=r"targets 'attn_add' leaves out: \['transformer.single_transformer"):
        check_adapter(wide, run_config().policy)


def test_it_is_torch_free() -> None:
    program = "import sys; import rl.policies.stored; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
