"""Adapters of a policy whose component has a name of its own: written and read back like FLUX.2's and the UNet's."""

from pathlib import Path

import numpy as np

from rl.policies.lora_export import write_adapter
from rl.policies.lora_file import Adapter, LoraPair, read_adapter, read_lora_header


def test_an_adapter_reads_back_under_its_own_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {"net.inner": (8, 6), "net.level": (8, 1)}
    pairs = {
        name: LoraPair(rng.standard_normal((2, i), np.float32), rng.standard_normal((o, 2), np.float32), 4.0)
        for name, (o, i) in layers.items()
    }
    file = tmp_path / "a.safetensors"
    write_adapter(file, Adapter(pairs, "test", {"step": 3}), "diffusers")
    header = read_lora_header(file)
    assert (header["adapter"]["r"], header["isrl"]) == (2, {"step": 3})
    read = read_adapter(file, modules=["net.inner", "net.level", "net.outer"])
    assert set(read.pairs) == set(layers)
    for name, pair in pairs.items():
        np.testing.assert_allclose(read.pairs[name].delta(), pair.delta(), rtol=1e-6)
