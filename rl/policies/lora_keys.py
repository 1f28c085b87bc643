"""Names of a LoRA's layers in the tools that read and write them; names only, no tensors.

A layer's canonical name is the pipeline's component and diffusers' path in it, `unet.mid_block.attentions.0.proj_in`.
Other tools use the names of the model's first release ("original" here): Black Forest Labs' FLUX.2, which stores q, k
and v as one matrix, or CompVis' Stable Diffusion UNet. ComfyUI keeps the original names; kohya's scripts write either
kind with underscores. Left out: FLUX.2's `norm_out.linear`; its halves are swapped there, so a name is not enough.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rl.config.policy import Layout

DOTTED = ("", "transformer.", "unet.", "diffusion_model.", "base_model.model.", "unet.base_model.model.")
UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")

FLUX2_DOUBLE = {
    "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 1), "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0), "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2), "attn.to_out.0": ("img_attn.proj", None),
    "attn.to_add_out": ("txt_attn.proj", None), "ff.linear_in": ("img_mlp.0", None),
    "ff.linear_out": ("img_mlp.2", None), "ff_context.linear_in": ("txt_mlp.0", None),
    "ff_context.linear_out": ("txt_mlp.2", None),
}  # fmt: skip
FLUX2_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
FLUX2_OTHER = {
    "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
}  # fmt: skip
UNET_RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_OTHER = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A layer's place in the model's original code: a matrix and, where q, k, v are fused, which third of its rows."""

    name: str
    third: int | None = None


def flux2_place(path: str) -> Place | None:
    """`transformer_blocks.3.attn.to_k` -> `double_blocks.3.img_attn.qkv`, second third; None where there is none."""
    block = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", path)
    if block is None:
        return Place(FLUX2_OTHER[path]) if path in FLUX2_OTHER else None
    single, index, rest = block.groups()
    if single:
        return Place(f"single_blocks.{index}.{FLUX2_SINGLE[rest]}") if rest in FLUX2_SINGLE else None
    if rest not in FLUX2_DOUBLE:
        return None
    name, third = FLUX2_DOUBLE[rest]
    return Place(f"double_blocks.{index}.{name}", third)


def unet_places(paths: Collection[str]) -> dict[str, Place]:
    """CompVis' names of a whole UNet's layers. They number blocks consecutively, so a layer's place depends on how many
    resnets the earlier levels have and which end in a sampler. `paths` must therefore be all layers of the model."""
    known = UNET_OTHER | _unet_blocks(paths)
    places = {}
    for path in paths:
        folder = re.match(r"(mid_block|(down|up)_blocks\.\d+)\.(resnets|attentions)\.\d+", path)
        if path in known:
            places[path] = Place(known[path])
        elif folder is not None and folder[0] in known:
            rest = path.removeprefix(folder[0] + ".")
            places[path] = Place(f"{known[folder[0]]}.{UNET_RESNET.get(rest, rest)}")
    return places


def _unet_blocks(paths: Collection[str]) -> dict[str, str]:
    """`down_blocks.1.resnets.0` -> `input_blocks.4.0`, and the samplers' layers."""
    names = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    names["mid_block.resnets.1"] = "middle_block.2"
    block = 1
    for level in range(_count(paths, "down_blocks")):
        at = f"down_blocks.{level}"
        for i in range(_count(paths, f"{at}.resnets")):
            names[f"{at}.resnets.{i}"] = f"input_blocks.{block}.0"
            names[f"{at}.attentions.{i}"] = f"input_blocks.{block}.1"
            block += 1
        names[f"{at}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
        block += _count(paths, f"{at}.downsamplers")
    block = 0
    for level in range(_count(paths, "up_blocks")):
        at = f"up_blocks.{level}"
        for i in range(_count(paths, f"{at}.resnets")):
            names[f"{at}.resnets.{i}"] = f"output_blocks.{block}.0"
            names[f"{at}.attentions.{i}"] = f"output_blocks.{block}.1"
            block += 1
        behind = 2 if _count(paths, f"{at}.attentions") else 1
        names[f"{at}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{behind}.conv"
    return names


def _count(paths: Collection[str], folder: str) -> int:
    """Number of numbered children of `folder`."""
    return len({path.removeprefix(folder + ".").partition(".")[0] for path in paths if path.startswith(folder + ".")})


def layout_of(modules: Collection[str]) -> Layout | None:
    """The layout that the layers of a file without isrl's header seem to have; None where none is known.

    A guess: SD3 and FLUX.1 share some layer names with FLUX.2. A policy declares its layout (`PolicySection.layout`),
    and so does the header of its adapters.
    """
    if all(module.startswith("unet.") for module in modules):
        return "unet"
    flux2 = all(module.startswith("transformer.") and flux2_place(_path(module)) for module in modules)
    return "flux2" if flux2 else None


def names_of_model(modules: Collection[str], layout: Layout | None) -> dict[str, tuple[str, ...]]:
    """Every name that a known tool gives a layer -> the layers it refers to: one, or q, k and v.

    `modules` are the canonical names of all Linear and Conv2d layers of the model; our own files use them, whatever the
    component is called. Original names are those of `layout`. If two names differ only in dots and underscores, neither
    gets a name with underscores here, because it would be ambiguous.
    """
    meanings: dict[str, tuple[str, ...]] = {_path(module): (module,) for module in modules}
    for name, parts in _by_original(_originals(modules, layout)).items():
        meanings[name] = parts
    flat = Counter(name.replace(".", "_") for name in meanings)
    table = {prefix + name: parts for name, parts in meanings.items() for prefix in DOTTED}
    for name, parts in meanings.items():
        if flat[name.replace(".", "_")] == 1:
            table.update({prefix + name.replace(".", "_"): parts for prefix in UNDERSCORED})
    return {**table, **{module: (module,) for module in modules}}


def _originals(modules: Collection[str], layout: Layout | None) -> dict[str, Place | None]:
    """Canonical name -> place."""
    if layout == "flux2":
        return {module: flux2_place(_path(module)) for module in modules if module.startswith("transformer.")}
    if layout == "unet":
        places = unet_places([_path(module) for module in modules if module.startswith("unet.")])
        return {f"unet.{path}": place for path, place in places.items()}
    return {}


def _by_original(places: Mapping[str, Place | None]) -> dict[str, tuple[str, ...]]:
    """Original name -> its one layer or its three; a matrix with missing thirds is left out."""
    found: dict[str, dict[int | None, str]] = {}
    for module, place in places.items():
        if place is not None:
            found.setdefault(place.name, {})[place.third] = module
    whole = {name: parts for name, parts in found.items() if set(parts) in ({None}, {0, 1, 2})}
    return {name: tuple(parts[key] for key in sorted(parts, key=lambda k: k or 0)) for name, parts in whole.items()}


def _path(module: str) -> str:
    return module.partition(".")[2]
