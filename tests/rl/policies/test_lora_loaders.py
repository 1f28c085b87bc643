"""Every exported format, loaded by the tools that it is for and merged by them, against W + s B A.

diffusers runs here always. ComfyUI runs where ISRL_COMFYUI names a checkout whose requirements can be imported
(`ISRL_COMFYUI=~/ComfyUI uv run pytest tests/rl/policies/test_lora_loaders.py`); without one, the names in our files are
held against `comfyui_keys.json`, the names that ComfyUI's loader knows for two small models.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
)
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from torch import Tensor, nn

from rl.config.policy import Layout
from rl.policies.lora_export import Format, write_adapter
from rl.policies.lora_file import Adapter, LoraPair, read_adapter
from rl.policies.lora_keys import Place, flux2_place, unet_places

HERE = Path(__file__).parent
GOLDEN = HERE / "comfyui_keys.json"
KINDS = get_args(Layout)
FORMATS = get_args(Format)
COMPONENT = {"flux2": "transformer", "unet": "unet"}

UNET = {
    "block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": (1, 2),
    "use_linear_projection": True, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
"""ComfyUI's UNet wants multiples of 64 channels; the layers are those of the suite's tiny UNet."""
COMFYUI = {
    "flux2": {
        "image_model": "flux2", "in_channels": 16, "out_channels": 16, "vec_in_dim": None, "context_in_dim": 12,
        "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 2,
        "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": False,
        "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        "default_ref_method": "index", "ref_index_scale": 10.0,
    },
    "unet": {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
        "channel_mult": [1, 2], "transformer_depth": [1, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 0, 0], "context_dim": 12, "use_linear_in_transformer": True,
        "adm_in_channels": None, "use_temporal_attention": False, "use_spatial_transformer": True, "legacy": False,
        "use_checkpoint": False,
    },
}  # fmt: skip


def adapted(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of FLUX.2 every matrix in its blocks, all that our target sets name; of the UNet every layer."""
    matrices = {name: weight for name, weight in weights.items() if weight.ndim > 1}
    return {name: w for name, w in matrices.items() if name.startswith("unet.") or "transformer_blocks." in name}


def weights_of(kind: str, model: nn.Module) -> dict[str, Tensor]:
    """Canonical name (with `.bias` where it is one) -> value, PEFT's wrapping undone."""
    names = {name.replace(".base_layer", "").removesuffix(".weight"): v for name, v in model.state_dict().items()}
    return {f"{COMPONENT[kind]}.{name}": value.clone() for name, value in names.items()}


def adapter_for(weights: dict[str, Tensor], rank: int = 4, alpha: float = 6.0) -> Adapter:
    """Random pairs on all layers, convolutions included, with s = 1.5."""
    rng = np.random.default_rng(0)
    pairs = {}
    for name, weight in weights.items():
        a = rng.standard_normal((rank, *weight.shape[1:]), np.float32)
        b = 0.1 * rng.standard_normal((len(weight), rank, *(1,) * (weight.ndim - 2)), np.float32)
        pairs[name] = LoraPair(a, b, alpha)
    return Adapter(pairs, "test")


@pytest.fixture(scope="module")
def tiny(tiny_flux2_folder: Path, tiny_sd21_folder: Path) -> Callable[[str], nn.Module]:
    def make(kind: str) -> nn.Module:
        if kind == "flux2":
            return Flux2Transformer2DModel.from_pretrained(tiny_flux2_folder / "transformer")
        return UNet2DConditionModel.from_pretrained(tiny_sd21_folder / "unet")

    return make


def pipeline(kind: str, model: nn.Module) -> Any:
    if kind == "flux2":
        return Flux2Pipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, model)
    return StableDiffusionPipeline(
        None, None, None, model, DDPMScheduler(), None, None, requires_safety_checker=False
    )  # fmt: skip


def check_merged(base: dict[str, Tensor], merged: dict[str, Tensor], adapter: Adapter) -> None:
    """Every adapted weight is W + s B A to 1e-6, every other weight is W."""
    for name, before in base.items():
        pair = adapter.pairs.get(name)
        expected = before if pair is None else before + torch.from_numpy(pair.delta())
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_pipeline_merges_every_format(
    kind: str, format: Format, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    """`load_lora_weights` of FLUX.2's and of Stable Diffusion's pipeline, then `fuse_lora`."""
    model = tiny(kind)
    base = weights_of(kind, model)
    adapter = adapter_for(adapted(base))
    write_adapter(tmp_path / "a.safetensors", adapter, format)
    pipeline(kind, model).load_lora_weights(str(tmp_path / "a.safetensors"))
    model.fuse_lora()
    check_merged(base, weights_of(kind, model), adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_model_merges_the_main_export(kind: str, tiny: Callable[[str], nn.Module], tmp_path: Path) -> None:
    """`load_lora_adapter` of the model alone, with ranks and alphas that differ from layer to layer."""
    model = tiny(kind)
    base = weights_of(kind, model)
    weights = adapted(base)
    names = list(weights)
    low, high = ({n: weights[n] for n in part} for part in (names[::2], names[1::2]))
    adapter = Adapter({**adapter_for(low, 2, 3.0).pairs, **adapter_for(high, 3, 1.0).pairs}, "test")
    write_adapter(tmp_path / "a.safetensors", adapter, "diffusers")
    model.load_lora_adapter(str(tmp_path / "a.safetensors"), prefix=COMPONENT[kind])
    model.fuse_lora()
    check_merged(base, weights_of(kind, model), adapter)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_knows_the_names(kind: str, format: Format, tiny: Callable[[str], nn.Module], tmp_path: Path) -> None:
    """Layer by layer: the written name is one that ComfyUI's loader has, and leads to the matrix, of q, k, v the rows,
    where our table of original names puts the layer."""
    golden: dict[str, str] = json.loads(GOLDEN.read_text())[kind]
    weights = adapted(weights_of(kind, tiny(kind)))
    original = places(kind, weights)
    suffix = r"([._]lora\.(down|up)|\.lora_(A|B|down|up))\.weight$|\.alpha$"
    for name, pair in adapter_for(weights).pairs.items():
        write_adapter(tmp_path / "a.safetensors", Adapter({name: pair}, "test"), format)
        (stem,) = {re.sub(suffix, "", tensor) for tensor in load_numpy(tmp_path / "a.safetensors")}
        place = original[name.partition(".")[2]]
        rows = ""
        if format == "diffusers" and place.third is not None:
            rows = f"[{len(pair.b) * place.third}:{len(pair.b) * (place.third + 1)}]"
        assert golden[stem] == f"diffusion_model.{place.name}.weight{rows}"


def places(kind: str, weights: dict[str, Tensor]) -> dict[str, Place]:
    paths = [name.partition(".")[2] for name in weights]
    found = unet_places(paths) if kind == "unet" else {path: flux2_place(path) for path in paths}
    return {path: place for path, place in found.items() if place is not None}


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """kind -> (base weights, adapter, format -> merged weights, ComfyUI's report), all under canonical names."""
    checkout = os.environ.get("ISRL_COMFYUI")
    if not checkout:
        pytest.skip("ISRL_COMFYUI names no checkout of ComfyUI; its names are held against comfyui_keys.json")
    folder = tmp_path_factory.mktemp("comfyui")
    run_comfyui(checkout, folder, {kind: {} for kind in KINDS})
    files, adapters, bases = {}, {}, {}
    for kind in KINDS:
        bases[kind] = to_diffusers(kind, folder / kind / "base.safetensors")
        adapters[kind] = adapter_for(adapted(bases[kind]))
        files[kind] = {}
        for format in FORMATS:
            files[kind][format] = str(folder / f"{kind}-{format}.safetensors")
            write_adapter(Path(files[kind][format]), adapters[kind], format)
    run_comfyui(checkout, folder, files)
    found = {}
    for kind in KINDS:
        merged = {format: to_diffusers(kind, folder / kind / f"{format}.safetensors") for format in FORMATS}
        found[kind] = (bases[kind], adapters[kind], merged, json.loads((folder / kind / "report.json").read_text()))
    return found


def run_comfyui(checkout: str, folder: Path, files: dict[str, dict[str, str]]) -> None:
    job = [
        {"kind": kind, "config": COMFYUI[kind], "out": str(folder / kind), "files": files[kind]} for kind in KINDS
    ]  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, str(HERE / "run_comfyui.py"), checkout, str(folder / "job.json")], check=True)


def to_diffusers(kind: str, file: Path) -> dict[str, Tensor]:
    """ComfyUI's weights under canonical names, by diffusers' readers of single-file checkpoints."""
    weights = {
        name.removeprefix("diffusion_model."): value
        for name, value in load_file(file).items() if name.startswith("diffusion_model.")
    }  # fmt: skip
    if kind == "flux2":
        found = convert_flux2_transformer_checkpoint_to_diffusers(weights)
    else:
        config = {**UNET, "class_embed_type": None, "addition_embed_type": None}
        found = convert_ldm_unet_checkpoint({f"model.diffusion_model.{n}": v for n, v in weights.items()}, config)
    return {f"{COMPONENT[kind]}.{name.removesuffix('.weight')}": value for name, value in found.items()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_merges_every_format(kind: str, format: Format, comfyui: dict[str, Any]) -> None:
    """ComfyUI's map of names, loader and patcher on its own model classes: nothing unmapped, equal weights."""
    base, adapter, merged, report = comfyui[kind]
    assert report["complaints"][format] == []
    check_merged(base, merged[format], adapter)


def test_the_golden_names_are_comfyuis(comfyui: dict[str, Any]) -> None:
    golden = json.loads(GOLDEN.read_text())
    for kind in KINDS:
        names = comfyui[kind][3]["names"]
        assert {stem: names.get(stem) for stem in golden[kind]} == golden[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: Layout, tiny: Callable[[str], nn.Module], tmp_path: Path) -> None:
    """Each format comes back with the rank and the effect that it was written with, fused q, k, v split again."""
    weights = adapted(weights_of(kind, tiny(kind)))
    adapter = adapter_for(weights)
    for format in FORMATS:
        write_adapter(tmp_path / f"{format}.safetensors", adapter, format)
        back = read_adapter(tmp_path / f"{format}.safetensors", list(weights), kind)
        assert set(back.pairs) == set(adapter.pairs)
        for name, pair in adapter.pairs.items():
            assert back.pairs[name].rank == pair.rank
            np.testing.assert_allclose(back.pairs[name].delta(), pair.delta(), rtol=0, atol=1e-6)
