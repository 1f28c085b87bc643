"""Adapters for other tools. In every format the scale is folded into B and alpha is the rank, so that tools apply the
same s B A whether or not they read alpha.

    format     names                                                        alpha
    diffusers  `transformer.<path>.lora_A.weight`; a UNet's old names,      in the header
               which ComfyUI reads too: `unet.<path>.lora.down.weight`
    kohya      `lora_unet_<path with underscores>.lora_down.weight`         a tensor each
    comfyui    FLUX.2: `diffusion_model.<original path>.lora_A.weight`;     none
               a UNet: kohya's

FLUX.2's q, k and v are one matrix in its original code, and hence in kohya's and ComfyUI's names: three pairs of rank r
become one of rank 3 r with a block-diagonal B, or of rank r where they share A.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors.numpy import save_file

from rl.config.policy import Layout
from rl.errors import InputError
from rl.policies.lora_file import LORA_FILE, Adapter, LoraPair, read_adapter
from rl.policies.lora_keys import flux2_place, layout_of
from rl.types import F32

Format = Literal["diffusers", "kohya", "comfyui"]


def export_as(source: Path, format: Format, out: Path) -> Path:
    """Write a run's adapter, or an adapter file, under the names of another tool; returns `out`.

    Args:
        source: a run's folder, or an adapter's file or folder.

    Raises:
        InputError: the format is unknown or has no names for this model, or `out` does not end in .safetensors.
        MissingInput: there is no adapter.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: expected a file that ends in .safetensors, which other tools look for")
    if format not in get_args(Format):
        raise InputError(f"--format {format}: expected {', '.join(get_args(Format))}")
    run = source / "lora" / LORA_FILE
    write_adapter(out, read_adapter(run if run.is_file() else source), format)
    return out


def write_adapter(path: Path, adapter: Adapter, format: Format) -> None:
    """Write one safetensors file; it appears whole or not at all."""
    tensors = {"diffusers": _diffusers, "kohya": _kohya, "comfyui": _comfyui}[format](adapter)
    header = {"format": "pt", "isrl": json.dumps(dict(adapter.facts))}
    if format == "diffusers":
        header["lora_adapter_metadata"] = json.dumps(_metadata(adapter))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, partial, metadata=header)
    partial.rename(path)


def _metadata(adapter: Adapter) -> dict[str, object]:
    """PEFT's settings as diffusers stores them, under each component's prefix. `^` keeps a pattern from matching the
    end of other names."""
    ranks: dict[str, dict[str, int]] = {}
    for name, pair in adapter.pairs.items():
        component, _, path = name.partition(".")
        ranks.setdefault(component, {})[path] = pair.rank
    return {f"{component}.{key}": value for component, of in ranks.items() for key, value in _settings(of).items()}


def _settings(ranks: Mapping[str, int]) -> dict[str, object]:
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{path}": value for path, value in ranks.items() if value != rank}
    return {
        "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": sorted(ranks), "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip


def _diffusers(adapter: Adapter) -> dict[str, F32]:
    tensors = {}
    for name, pair in adapter.pairs.items():
        down, up = ".lora_A.weight", ".lora_B.weight"
        if name.startswith("unet."):
            down, up = ".lora.down.weight", ".lora.up.weight"
            # ComfyUI knows a UNet's attention only as `processor`, with `to_out` for `to_out.0`
            old = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1", name)
            if old != name:
                name, down, up = old, "_lora.down.weight", "_lora.up.weight"
        tensors[name + down], tensors[name + up] = pair.a, folded(pair)
    return tensors


def folded(pair: LoraPair) -> F32:
    """s B, which together with A has the same effect at s = 1."""
    return np.float32(pair.scale) * pair.b


def _kohya(adapter: Adapter) -> dict[str, F32]:
    tensors: dict[str, F32] = {}
    for name, (a, b) in _original(adapter).items():
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = a, b
        tensors[f"{stem}.alpha"] = np.array(len(a), np.float32)
    return tensors


def _comfyui(adapter: Adapter) -> dict[str, F32]:
    if _layout(adapter) == "unet":
        return _kohya(adapter)
    tensors = {}
    for name, (a, b) in _original(adapter).items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = a
        tensors[f"diffusion_model.{name}.lora_B.weight"] = b
    return tensors


def _original(adapter: Adapter) -> dict[str, tuple[F32, F32]]:
    """Name that kohya's scripts start from -> A and the folded B. For a UNet these are diffusers' names."""
    layout = _layout(adapter)
    if layout is None:
        raise InputError(
            f"{adapter.source}: kohya and ComfyUI have no known names for its layers; write --format diffusers"
        )
    found: dict[str, dict[int | None, LoraPair]] = {}
    for name, pair in adapter.pairs.items():
        path = name.partition(".")[2]
        place = flux2_place(path) if layout == "flux2" else None
        found.setdefault(place.name if place else path, {})[place.third if place else None] = pair
    return {name: (parts[None].a, folded(parts[None])) if None in parts else _fused(parts)
            for name, parts in found.items()}  # fmt: skip


def _layout(adapter: Adapter) -> Layout | None:
    """As declared by the policy, or guessed from the names in a foreign file."""
    layout: Layout | None = adapter.facts["layout"] if "layout" in adapter.facts else layout_of(adapter.pairs)
    return layout


def _fused(thirds: Mapping[int | None, LoraPair]) -> tuple[F32, F32]:
    """A and folded B of q, k and v as one matrix; a third without an adapter is left unchanged."""
    pairs = list(thirds.values())
    shared = all(np.array_equal(pair.a, pairs[0].a) for pair in pairs)
    a = pairs[0].a if shared else np.concatenate([pair.a for pair in pairs])
    out, column = len(pairs[0].b), 0
    b = np.zeros((3 * out, len(a)), np.float32)
    for third, pair in thirds.items():
        assert third is not None
        b[third * out : (third + 1) * out, column : column + pair.rank] = folded(pair)
        column += 0 if shared else pair.rank
    return a, b
