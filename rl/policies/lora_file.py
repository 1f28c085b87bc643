"""Adapter files: one carrier for every format, with the strength that the file's own rules give it.

    W' = W + s B A,   s = alpha / r

Hu et al., LoRA, 2106.09685, eq. 3. A is `[r, in]`, B `[out, r]`; for a convolution A is `[r, in, kh, kw]` and B
`[out, r, 1, 1]`, so that B A is a kernel `[out, in, kh, kw]`. Reads diffusers' files, PEFT's folders, and kohya's and
ComfyUI's names; `rl.policies.lora_export` writes. Torch-free: the driver reads headers, the learner tensors.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from rl.config.policy import Layout
from rl.errors import InputError, MissingInput
from rl.policies.lora_keys import names_of_model
from rl.types import F32

LORA_FILE = "pytorch_lora_weights.safetensors"
COMPONENTS = ("transformer", "unet")
"""diffusers' names for the model that a pipeline's adapter belongs to; prefixes of canonical layer names."""

SUFFIXES = {
    ".lora_A.weight": "A", ".lora_down.weight": "A", ".lora.down.weight": "A", "_lora.down.weight": "A",
    ".lora_A.default.weight": "A", ".lora_B.weight": "B", ".lora_up.weight": "B", ".lora.up.weight": "B",
    "_lora.up.weight": "B", ".lora_B.default.weight": "B", ".alpha": "alpha",
}  # fmt: skip
Settings = dict[str, dict[str, object]]
"""Component -> PEFT's settings of its adapter."""
NOT_LORA = {
    "dora_scale|lora_magnitude_vector": "DoRA", r"\.hada_": "LoHa", r"\.lokr_": "LoKr", r"\.oft_": "OFT",
    r"\.lora_mid\.": "LoCon with a Tucker core", r"\.lora_B\.bias$": "LoRA with a bias",
    r"\.diff(_b)?$": "a whole difference", "text_encoder|^lora_te": "LoRA of a text encoder",
}  # fmt: skip
"""Pattern of a tensor's name -> the kind of adapter."""


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One layer's adapter; its effect on the layer's weight is `delta`."""

    a: F32
    """`[r, in]`, or `[r, in, kh, kw]` for a convolution."""
    b: F32
    """`[out, r]`, or `[out, r, 1, 1]`."""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def scale(self) -> float:
        """s = alpha / r."""
        return self.alpha / self.rank

    def delta(self) -> F32:
        """s B A, `[out, in, ...]`, in the shape of the layer's weight."""
        product = self.b.reshape(len(self.b), -1) @ self.a.reshape(self.rank, -1)
        return (self.scale * product).reshape(len(self.b), *self.a.shape[1:])


@dataclass(frozen=True, eq=False)
class Adapter:
    """The LoRA of a model, layer by layer."""

    pairs: Mapping[str, LoraPair]
    """Canonical name, `transformer.transformer_blocks.0.attn.to_q`, -> pair."""
    source: str
    """Where it comes from, for messages."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The `isrl` part of the header: base, run, step, rank and alpha of training; empty for a foreign file."""


def adapter_of(
    tensors: Mapping[str, NDArray[np.generic]], alpha: float, source: str, facts: Mapping[str, Any]
) -> Adapter:
    """An adapter from tensors under isrl's names, `<canonical>.lora_A.weight`, all trained with one alpha."""
    found = _layers(source, {name: np.asarray(value, np.float32) for name, value in tensors.items()})
    return Adapter({name: _pair(source, name, parts, alpha) for name, parts in found.items()}, source, facts)


def read_adapter(path: Path | str, modules: Collection[str] = (), layout: Layout | None = None) -> Adapter:
    """An adapter from any known tool, under canonical names and with its own strength.

    alpha is, in this order: the layer's `.alpha` tensor; the header's `lora_adapter_metadata` or PEFT's
    `adapter_config.json` (including patterns by layer and rsLoRA's s = alpha / sqrt(r)); else the rank, meaning s = 1,
    as in diffusers and ComfyUI. A fused q, k, v becomes three pairs, each without the directions where its B is zero.

    Args:
        path: a safetensors file, a PEFT folder, or a folder with `pytorch_lora_weights.safetensors`.
        modules: canonical names of all Linear and Conv2d layers of the model. Needed for all names except diffusers'
            and isrl's own.
        layout: the original naming scheme of the model's layers.

    Raises:
        MissingInput: there is no such file. InputError: a tensor is not part of a LoRA or of any layer of the model.
    """
    file, settings = _located(Path(path))
    tensors, header = read_tensors(file)
    settings = settings or _settings(header)
    names = names_of_model(modules, layout)
    components = tuple(f"{component}." for component in (*COMPONENTS, *settings) if component)
    pairs: dict[str, LoraPair] = {}
    for stem, parts in _layers(str(file), tensors).items():
        layers = names.get(stem, ()) if modules else (stem,) * stem.startswith(components)
        if not layers:
            raise InputError(f"{file}: {_unmapped(stem, bool(modules))}")
        unsaid = "A" in parts and "alpha" not in parts
        default = _alpha(str(file), settings, layers[0], len(parts["A"])) if unsaid else 0.0
        whole = _pair(str(file), stem, parts, default)
        if len(layers) == 3 and len(whole.b) % 3:
            raise InputError(
                f"{file}: {stem} has B {whole.b.shape}; expected q, k and v of equal size, one below another"
            )
        for layer, pair in zip(layers, _thirds(whole) if len(layers) == 3 else [whole], strict=True):
            if layer in pairs:
                raise InputError(f"{file}: {stem} is a second adapter of {layer}; expected one a layer")
            pairs[layer] = pair
    return Adapter(pairs, str(path), json.loads(header.get("isrl", "{}")))


def rescaled(adapter: Adapter, rank: int, alpha: float, fresh: Mapping[str, F32] | None = None) -> dict[str, F32]:
    """`<canonical>.lora_A.weight` and `.lora_B.weight` for another rank and alpha, with the same effect s B A.

        B' = B (s_file / s),   s = alpha / rank

    exact where the quotient is a power of two, else up to float32 rounding. A lower rank is padded: B with zeros, A
    with the rows of `fresh` (the run's initial A by tensor name), or with zeros too if that is None. A direction with
    both A and B zero never gets a gradient, so an adapter to be trained needs `fresh`.

    Raises:
        InputError: a layer's rank is higher, the run does not adapt the layer, or its A has another shape.
    """
    highest = max(pair.rank for pair in adapter.pairs.values())
    tensors: dict[str, F32] = {}
    for name, pair in adapter.pairs.items():
        at = f"{adapter.source}: {name}"
        if pair.rank > rank:
            raise InputError(f"{at} has rank {pair.rank}, the run's adapter {rank}; write policy.lora.rank: {highest}")
        a = np.zeros((rank, *pair.a.shape[1:]), np.float32)
        if fresh is not None:
            initial = fresh.get(f"{name}.lora_A.weight")
            if initial is None:
                raise InputError(f"{at} is no layer of the run's adapter; write policy.lora.targets that have it")
            if initial.shape != a.shape:
                raise InputError(f"{at} has A {pair.a.shape}, the model's layer wants (r, {initial.shape[1:]})")
            a[:] = initial
        a[: pair.rank] = pair.a
        b = np.zeros((len(pair.b), rank, *pair.b.shape[2:]), np.float32)
        b[:, : pair.rank] = np.float32(pair.scale * rank / alpha) * pair.b
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
    return tensors


def read_lora_header(file: Path) -> dict[str, dict[str, object]]:
    """Both parts of the header, `adapter` and `isrl`; `isrl` is empty for another tool's adapter."""
    header = read_header(file)
    settings = _settings(header)
    # a pipeline's file may also have settings for its text encoder
    adapter = next(
        (found for component in (*COMPONENTS, *settings) if "r" in (found := settings.get(component, {}))), None
    )
    if adapter is None:
        expected = " or ".join(component + ".r" for component in (*COMPONENTS, "<component>"))
        raise InputError(f"{file}: expected diffusers' lora_adapter_metadata with {expected} in the header, found none")
    return {"adapter": adapter, "isrl": json.loads(header.get("isrl", "{}"))}


def read_tensors(file: Path) -> tuple[dict[str, F32], dict[str, str]]:
    """Tensors as float32 (including bfloat16, which numpy lacks) and the header's texts."""
    header = read_header(file)
    tensors = {}
    for name, raw in deserialize(file.read_bytes()):  # type: ignore[no-untyped-call]
        if raw["dtype"] == "BF16":
            value = (np.frombuffer(raw["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif raw["dtype"] in ("F16", "F32", "F64"):
            value = np.frombuffer(raw["data"], f"<f{int(raw['dtype'][1:]) // 8}").astype(np.float32)
        else:
            raise InputError(
                f"{file}: {name} is {raw['dtype']}; expected F32, F16, BF16 or F64: save it in one of them"
            )
        tensors[name] = value.reshape(raw["shape"])
    return tensors, header


def read_header(file: Path) -> dict[str, str]:
    """The raw metadata of a safetensors file; raises MissingInput or InputError if it is not one."""
    if not file.is_file():
        raise MissingInput(f"{file}: no such LoRA file; a run writes it to <run.dir>/lora/{LORA_FILE}")
    try:
        with safe_open(file, framework="numpy") as handle:
            return handle.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{file}: expected a safetensors file, got something else ({error})") from error


def _located(path: Path) -> tuple[Path, Settings]:
    """The file with the tensors and, for a PEFT folder, its settings."""
    folder = path if path.is_dir() else path.parent
    config = folder / "adapter_config.json"
    peft = folder / "adapter_model.safetensors"
    if config.is_file() and (path.is_dir() or path == peft):
        settings: dict[str, object] = json.loads(config.read_text(encoding="utf-8"))
        kind = settings.get("peft_type", "LORA")
        if kind != "LORA" or settings.get("use_dora"):
            raise InputError(f"{path}: expected a LoRA, got PEFT's {'DoRA' if kind == 'LORA' else kind}")
        return peft, {"": settings}
    return (path / LORA_FILE if path.is_dir() else path), {}


def _settings(header: Mapping[str, str]) -> Settings:
    """diffusers' `lora_adapter_metadata`; `save_lora_adapter` omits the component, which is "" here."""
    packed: dict[str, object] = json.loads(header.get("lora_adapter_metadata", "{}"))
    found: Settings = {}
    for key, value in packed.items():
        component, _, name = key.rpartition(".")
        found.setdefault(component, {})[name] = value
    return found


def _alpha(source: str, settings: Settings, layer: str, rank: int) -> float:
    """alpha of one layer, such that s = alpha / r; patterns are regular expressions for the end of a path, as in
    PEFT."""
    component, _, path = layer.partition(".")
    # the settings of a single model apply to the layer, whatever another tool calls the model
    sole = next(iter(settings.values())) if len(settings) == 1 else None
    own = settings.get(component, settings.get("", sole if settings else {}))
    if own is None:
        raise InputError(
            f"{source}: the header has settings for {sorted(settings)}, none for '{component}', so the strength of "
            f"{layer} is unknown; expected lora_adapter_metadata with {component}.lora_alpha"
        )
    patterns = own.get("alpha_pattern") or {}
    assert isinstance(patterns, dict)
    matching = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)]
    alpha = float([*matching, own.get("lora_alpha", rank)][0])
    return alpha * rank**0.5 if own.get("use_rslora") else alpha


def _layers(source: str, tensors: Mapping[str, F32]) -> dict[str, dict[str, F32]]:
    """Layer's name as the file has it -> its `A`, `B` and maybe `alpha`."""
    layers: dict[str, dict[str, F32]] = {}
    for name, value in tensors.items():
        kind = next((kind for pattern, kind in NOT_LORA.items() if re.search(pattern, name)), None)
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if kind is not None or suffix is None:
            raise InputError(
                f"{source}: {name} is {kind or 'of an unknown kind'}; expected pairs lora_A, lora_B (or lora_down, "
                "lora_up) with or without alpha: merge such an adapter into the base model's weights instead"
            )
        stem = name.removesuffix(suffix)
        if ".processor." in stem:
            # diffusers' 2023 names, which ComfyUI reads: `...attn1.processor.to_out_lora.down.weight`
            stem = re.sub(r"\.to_out$", ".to_out.0", stem.replace(".processor.", "."))
        layers.setdefault(stem, {})[SUFFIXES[suffix]] = value
    return layers


def _pair(source: str, name: str, parts: Mapping[str, F32], alpha: float) -> LoraPair:
    missing = {"A", "B"} - set(parts)
    if missing:
        raise InputError(f"{source}: {name} has no {' and no '.join(sorted(missing))}; the file is not whole")
    a, b = parts["A"], parts["B"]
    if a.ndim < 2 or b.ndim < 2 or b.shape[1:] != (a.shape[0], *(1,) * (b.ndim - 2)):
        raise InputError(
            f"{source}: {name} has A {a.shape} and B {b.shape}; expected [r, in, ...] and [out, r, 1, ...]"
        )
    return LoraPair(a, b, float(parts["alpha"].reshape(-1)[0]) if "alpha" in parts else alpha)


def _thirds(pair: LoraPair) -> list[LoraPair]:
    """q, k and v of a fused pair, each without the directions in which its B is zero; s stays."""
    thirds = []
    for b in np.split(pair.b, 3):
        used = b.reshape(len(b), pair.rank, -1).any(axis=(0, 2))
        used = used if used.any() else np.ones_like(used)
        thirds.append(LoraPair(pair.a[used], b[:, used], pair.scale * int(used.sum())))
    return thirds


def _unmapped(stem: str, with_modules: bool) -> str:
    if with_modules:
        return f"{stem} is no layer of this model under any known name; was the adapter trained for another model?"
    return (
        f"{stem} is not one of diffusers' names, {' or '.join(COMPONENTS)}...; the model's own list of layers is needed"
    )
