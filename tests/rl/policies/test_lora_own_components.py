"""Adapters of a policy whose components have names of their own, one or several: written and read back like FLUX.2's
and the UNet's."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rl.errors import InputError
from rl.policies.lora_export import export_as, write_adapter
from rl.policies.lora_file import Adapter, LoraPair, read_adapter, read_lora_header


def test_an_adapter_reads_back_under_its_own_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {"net.inner": (8, 6, 2), "net.level": (8, 1, 2), "branch.inner": (5, 7, 3)}
    pairs = {
        name: LoraPair(rng.standard_normal((r, i), np.float32), rng.standard_normal((o, r), np.float32), 4.0)
        for name, (o, i, r) in layers.items()
    }
    file = tmp_path / "a.safetensors"
    write_adapter(file, Adapter(pairs, "test", {"step": 3}), "diffusers")
    header = read_lora_header(file)
    assert (header["adapter"]["r"], header["isrl"]) == (2, {"step": 3})
    for modules in ((), ("net.inner", "net.level", "net.outer", "branch.inner")):
        read = read_adapter(file, modules)
        assert set(read.pairs) == set(layers)
        for name, pair in pairs.items():
            np.testing.assert_allclose(read.pairs[name].delta(), pair.delta(), rtol=1e-5, atol=1e-6)
    again = export_as(file, "diffusers", tmp_path / "b.safetensors")
    assert {n: t.tobytes() for n, t in load_file(again).items()} == {n: t.tobytes() for n, t in load_file(file).items()}


def test_each_component_has_its_own_settings(tmp_path: Path) -> None:
    """PEFT's alpha of one component says nothing of another's."""
    tensors = {
        f"{name}.lora_{part}.weight": np.ones((2, 2), np.float32)
        for name in ("net.inner", "branch.inner")
        for part in "AB"
    }
    settings = {"net.r": 2, "net.lora_alpha": 6.0, "branch.r": 2, "branch.lora_alpha": 2.0}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(settings)})
    pairs = read_adapter(file).pairs
    assert {name: pair.scale for name, pair in pairs.items()} == {"net.inner": 3.0, "branch.inner": 1.0}


def test_a_layer_whose_strength_the_header_leaves_open_is_refused(tmp_path: Path) -> None:
    """Settings for other components say nothing of this one: alpha = rank would be a guess."""
    tensors = {f"transformer.to_q.lora_{part}.weight": np.ones((2, 2), np.float32) for part in "AB"}
    settings = {"net.r": 2, "net.lora_alpha": 6.0, "branch.r": 2, "branch.lora_alpha": 2.0}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(InputError, match=r"settings for \['branch', 'net'\], none for 'transformer'"):
        read_adapter(file)
    save_file(
        {**tensors, "transformer.to_q.alpha": np.float32([4.0])},
        file,
        metadata={"lora_adapter_metadata": json.dumps(settings)},
    )
    assert read_adapter(file).pairs["transformer.to_q"].scale == 2.0
