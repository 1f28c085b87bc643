"""Adapters of other tools keep their strength: read by us, they have the effect that the tool itself gives them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
)
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from rl.errors import InputError
from rl.policies.lora_export import export_as, write_adapter
from rl.policies.lora_file import LORA_FILE, Adapter, LoraPair, adapter_of, read_adapter, rescaled
from rl.policies.lora_keys import flux2_place, layout_of, names_of_model, unet_places

SD21: dict[str, Any] = {
    "block_out_channels": (32, 64, 128, 128), "layers_per_block": 2, "cross_attention_dim": 8,
    "attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True,
}  # fmt: skip
"""Stable Diffusion 2.1's UNet, layer by layer, with fewer channels."""
Q, K, V = (f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv")
FLUX2 = [
    *(f"transformer.transformer_blocks.{i}.attn.{x}" for i in range(2)
      for x in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"transformer.transformer_blocks.{i}.{f}.linear_{x}" for i in range(2) for f in ("ff", "ff_context")
      for x in ("in", "out")),
    *(f"transformer.single_transformer_blocks.{i}.attn.{x}" for i in range(2) for x in ("to_qkv_mlp_proj", "to_out")),
    "transformer.x_embedder", "transformer.context_embedder", "transformer.proj_out",
    *(f"transformer.time_guidance_embed.{x}_embedder.linear_{i}" for x in ("timestep", "guidance") for i in (1, 2)),
    *(f"transformer.{x}.linear" for x in
      ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")),
]  # fmt: skip


def pair(rank: int, alpha: float, seed: int = 0, out: int = 6, kernel: tuple[int, ...] = ()) -> LoraPair:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rank, 5, *kernel), np.float32)
    return LoraPair(a, rng.standard_normal((out, rank, *(1 for _ in kernel)), np.float32), alpha)


def save(file: Path, tensors: dict[str, Any], header: dict[str, str] | None = None) -> Path:
    save_file({name: torch.as_tensor(value).contiguous() for name, value in tensors.items()}, file, metadata=header)
    return file


def same_effect(got: LoraPair, expected: LoraPair, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(got.delta(), expected.delta(), rtol=0, atol=atol)


# names
def test_every_unet_name_is_diffusers_own() -> None:
    """CompVis' names of all layers of SD 2.1's UNet: diffusers' reader of single-file checkpoints turns them back."""
    with torch.device("meta"):
        model = UNet2DConditionModel(**SD21)
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    places = unet_places(paths)
    assert len(paths) == 282 and set(places) == set(paths)
    checkpoint = {
        f"model.diffusion_model.{places[path].name}.weight": torch.tensor([i]) for i, path in enumerate(paths)
    }
    assert len(checkpoint) == len(paths)
    # the reader takes the biases of upsamplers for granted
    checkpoint |= {name.replace("weight", "bias"): torch.zeros(1) for name in checkpoint if ".conv.weight" in name}
    back = convert_ldm_unet_checkpoint(checkpoint, dict(model.config))
    assert {path: int(back[f"{path}.weight"]) for path in paths} == {path: i for i, path in enumerate(paths)}


def test_every_flux2_name_is_diffusers_own() -> None:
    """Black Forest Labs' names, and which third of q, k, v: by diffusers' reader of single-file checkpoints."""
    checkpoint: dict[str, Tensor] = {}
    expected = {}
    for i, module in enumerate(FLUX2):
        path = module.partition(".")[2]
        place = flux2_place(path)
        assert place is not None
        value = checkpoint.setdefault(f"{place.name}.weight", torch.zeros(3 if place.third is not None else 1))
        value[place.third or 0] = expected[path] = i + 1
    back = convert_flux2_transformer_checkpoint_to_diffusers(checkpoint)
    assert {name.removesuffix(".weight"): int(value) for name, value in back.items()} == expected
    assert flux2_place("norm_out.linear") is None


def test_names_with_underscores_are_resolved_by_the_model() -> None:
    """`to_out_0` and `add_q_proj` cannot be taken apart without the model's list; what is ambiguous has no name."""
    names = names_of_model([*FLUX2, "transformer.a.b_c", "transformer.a_b.c"], "flux2")
    assert names["lora_transformer_transformer_blocks_0_attn_to_out_0"] == (
        "transformer.transformer_blocks.0.attn.to_out.0",
    )
    assert names["lora_unet_double_blocks_0_img_attn_qkv"] == (Q, K, V)
    assert names["diffusion_model.double_blocks.0.img_attn.qkv"] == (Q, K, V)
    assert "lora_transformer_a_b_c" not in names and names["transformer.a_b.c"] == ("transformer.a_b.c",)
    assert "diffusion_model.double_blocks.0.img_attn.qkv" not in names_of_model([Q, K], "flux2")
    assert "diffusion_model.double_blocks.0.img_attn.qkv" not in names_of_model(FLUX2, None)


def test_layouts() -> None:
    assert layout_of(FLUX2) == "flux2"
    assert layout_of(["unet.conv_in"]) == "unet"
    assert layout_of(["transformer.blocks.0.attn1.to_q"]) is None


# strength
@pytest.mark.parametrize("alpha", [16.0, 32.0, 64.0])
def test_rescaled_keeps_the_effect(alpha: float) -> None:
    """A file with alpha 32, loaded into runs of alpha 16, 32, 64: bit for bit the same s B A, not 0.5, 1, 2 of it."""
    one = pair(16, 32.0)
    tensors = rescaled(Adapter({Q: one}, "a"), 16, alpha)
    back = adapter_of(tensors, alpha, "b", {}).pairs[Q]
    np.testing.assert_array_equal(back.delta(), one.delta())


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_lower_rank_is_filled_up(kernel: tuple[int, ...]) -> None:
    """Rank 3 in rank 8: the same effect; with the run's own A in the empty rows, so that they can learn."""
    one = pair(3, 3.0, kernel=kernel)
    adapter = Adapter({Q: one}, "a")
    fresh = {f"{Q}.lora_A.weight": pair(8, 1.0, seed=1, kernel=kernel).a}
    for initial in (None, fresh):
        tensors = rescaled(adapter, 8, 12.0, initial)
        assert tensors[f"{Q}.lora_A.weight"].shape == (8, 5, *kernel)
        same_effect(adapter_of(tensors, 12.0, "b", {}).pairs[Q], one)
    np.testing.assert_array_equal(tensors[f"{Q}.lora_A.weight"][3:], fresh[f"{Q}.lora_A.weight"][3:])
    assert not tensors[f"{Q}.lora_B.weight"][:, 3:].any()


def test_what_does_not_fit_the_run_is_refused() -> None:
    adapter = Adapter({Q: pair(8, 8.0), K: pair(16, 8.0)}, "big.safetensors")
    with pytest.raises(InputError, match=r"to_q has rank 8, the run's adapter 4; write policy.lora.rank: 16"):
        rescaled(adapter, 4, 4.0)
    with pytest.raises(InputError, match=r"to_q is no layer of the run's adapter; write policy.lora.targets"):
        rescaled(adapter, 16, 4.0, {})
    with pytest.raises(InputError, match=r"to_q has A \(8, 5\), the model's layer wants \(r, \(7,\)\)"):
        rescaled(adapter, 16, 4.0, {f"{Q}.lora_A.weight": np.zeros((16, 7), np.float32)})


def test_the_effect_of_a_convolution() -> None:
    """delta is the kernel of conv(conv(x, A), B) s, by torch's convolution."""
    one = pair(3, 6.0, kernel=(3, 3))
    x = torch.randn(1, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    a, b, kernel = (torch.from_numpy(value) for value in (one.a, one.b, one.delta()))
    two_steps = 2.0 * nn.functional.conv2d(nn.functional.conv2d(x, a), b)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel), two_steps, rtol=0, atol=1e-4)


# formats
def test_alpha_of_a_header(tmp_path: Path) -> None:
    """`lora_adapter_metadata`: alpha 16 for all, a pattern for one layer; without it s = 1, as diffusers has it."""
    tensors = {}
    for name, one in ((Q, pair(4, 0)), (K, pair(8, 0))):
        tensors |= {f"{name}.lora_A.weight": one.a, f"{name}.lora_B.weight": one.b}
    settings = {"r": 4, "lora_alpha": 16, "rank_pattern": {"to_k": 8}, "alpha_pattern": {"to_k": 2}}
    packed = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
    pairs = read_adapter(save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": packed})).pairs
    assert {name: one.scale for name, one in pairs.items()} == {Q: 4.0, K: 0.25}
    pairs = read_adapter(save(tmp_path / "b.safetensors", tensors)).pairs
    assert {name: one.scale for name, one in pairs.items()} == {Q: 1.0, K: 1.0}


@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_of_peft(rslora: bool, tiny_sd21_folder: Path, tmp_path: Path) -> None:
    """PEFT's own `save_pretrained`, with patterns and rsLoRA: per layer PEFT's `get_delta_weight`."""
    model = UNet2DConditionModel.from_pretrained(tiny_sd21_folder / "unet")
    layers = [f"unet.{n}" for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_out.0", "conv1"], rank_pattern={"to_q": 2},
        alpha_pattern={"attn1.to_q": 5}, use_rslora=rslora, init_lora_weights=False,
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path)
    expected = {
        "unet." + name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)
    }  # fmt: skip
    pairs = read_adapter(tmp_path, layers).pairs
    assert set(pairs) == set(expected) and len(expected) > 10
    for name, delta in expected.items():
        np.testing.assert_allclose(pairs[name].delta(), delta, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="the model's own list of layers is needed"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_fused_qkv_with_alpha(prefix: str, tmp_path: Path) -> None:
    """kohya's and ComfyUI's names, bfloat16, alpha 1 at rank 4: q, k and v are B's thirds at s = 1/4."""
    stem = prefix + ("double_blocks_0_img_attn_qkv" if "_unet_" in prefix else "double_blocks.0.img_attn.qkv")
    a, b = torch.randn(4, 5).bfloat16(), torch.randn(18, 4).bfloat16()
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(1.0)}
    pairs = read_adapter(save(tmp_path / "a.safetensors", tensors), FLUX2, "flux2").pairs
    whole = 0.25 * (b.float() @ a.float())
    for name, third in zip((Q, K, V), whole.split(6), strict=True):
        np.testing.assert_allclose(pairs[name].delta(), third.numpy(), rtol=0, atol=1e-6)


def test_a_third_that_was_not_trained_stays_zero(tmp_path: Path) -> None:
    """k alone, as q, k and v in one matrix: the others' effect is exactly none; k has its own rank again."""
    adapter = Adapter({K: pair(4, 6.0)}, "k")
    write_adapter(tmp_path / "k.safetensors", adapter, "comfyui")
    pairs = read_adapter(tmp_path / "k.safetensors", FLUX2, "flux2").pairs
    same_effect(pairs[K], adapter.pairs[K])
    assert not pairs[Q].delta().any() and not pairs[V].delta().any()


def test_original_names_of_a_unet(tmp_path: Path) -> None:
    """`input_blocks.4...` counts through the levels, with dots and with underscores."""
    with torch.device("meta"):
        model = UNet2DConditionModel(**SD21)
    layers = [f"unet.{n}" for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    one = pair(4, 2.0)
    for stem in ("diffusion_model.output_blocks.5.2.conv", "lora_unet_output_blocks_5_2_conv"):
        tensors = {f"{stem}.lora_down.weight": one.a, f"{stem}.lora_up.weight": one.b, f"{stem}.alpha": 2.0}
        pairs = read_adapter(save(tmp_path / "a.safetensors", tensors), layers, "unet").pairs
        assert set(pairs) == {"unet.up_blocks.1.upsamplers.0.conv"}
        same_effect(pairs["unet.up_blocks.1.upsamplers.0.conv"], one)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("lora_magnitude_vector", "DoRA"), ("dora_scale", "DoRA"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "LoCon"), ("lora_B.bias", "LoRA with a bias"), ("diff", "a whole difference"),
        ("weight", "of an unknown kind"),
    ],
)  # fmt: skip
def test_what_is_not_lora_is_refused_by_name(tensor: str, kind: str, tmp_path: Path) -> None:
    one = pair(4, 4.0)
    tensors = {f"{Q}.lora_A.weight": one.a, f"{Q}.lora_B.weight": one.b, f"{Q}.{tensor}": one.a + 1}
    with pytest.raises(InputError, match=rf"a.safetensors: .*to_q.{tensor} is {kind}"):
        read_adapter(save(tmp_path / "a.safetensors", tensors))


def test_layers_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    one = pair(4, 4.0)
    stem = "transformer.transformer_blocks.7.attn.to_q"
    file = save(tmp_path / "a.safetensors", {f"{stem}.lora_A.weight": one.a, f"{stem}.lora_B.weight": one.b})
    with pytest.raises(InputError, match=rf"{stem} is no layer of this model under any known name"):
        read_adapter(file, FLUX2)
    half = save(tmp_path / "half.safetensors", {f"{Q}.lora_A.weight": one.a})
    with pytest.raises(InputError, match=r"to_q has no B; the file is not whole"):
        read_adapter(half)
    with pytest.raises(InputError, match=r"no such LoRA file"):
        read_adapter(tmp_path / "none.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA"}))
    with pytest.raises(InputError, match="expected a LoRA, got PEFT's LOHA"):
        read_adapter(tmp_path)


def test_export_as(tmp_path: Path) -> None:
    """From a run's folder or from a file; the run's facts travel along."""
    adapter = Adapter({Q: pair(4, 8.0)}, "run", {"run": "night", "step": 3})
    write_adapter(tmp_path / "lora" / LORA_FILE, adapter, "diffusers")
    for source in (tmp_path, tmp_path / "lora", tmp_path / "lora" / LORA_FILE):
        out = export_as(source, "kohya", tmp_path / "out" / "k.safetensors")
        back = read_adapter(out, FLUX2, "flux2")
        assert back.facts == {"run": "night", "step": 3}
        same_effect(back.pairs[Q], adapter.pairs[Q])
        assert [path.name for path in out.parent.iterdir()] == ["k.safetensors"]
    with pytest.raises(InputError, match="--format peft: expected diffusers, kohya, comfyui"):
        export_as(tmp_path, "peft", out)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a file that ends in .safetensors"):
        export_as(tmp_path, "kohya", tmp_path)
    other = Adapter({"transformer.blocks.0.to_q": pair(4, 8.0)}, "mine")
    with pytest.raises(InputError, match="mine: kohya and ComfyUI have no known names"):
        write_adapter(tmp_path / "x.safetensors", other, "comfyui")


def test_a_policy_of_alike_names_is_not_taken_for_flux2(tmp_path: Path) -> None:
    """SD3's and FLUX.1's attention has FLUX.2's names; the header says that the policy has no layout."""
    other = Adapter({Q: pair(4, 8.0)}, "mine", {"layout": None})
    with pytest.raises(InputError, match="mine: kohya and ComfyUI have no known names"):
        write_adapter(tmp_path / "x.safetensors", other, "kohya")
