"""What a policy's folder stores, read only from the headers of its safetensors files, and whether an adapter fits it.

Torch-free. Left out: weights in other formats, about which nothing is known until they are loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from rl.config.policy import PolicySection
from rl.errors import InputError
from rl.policies.lora_file import read_adapter

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
"""Whole or sharded, without variants."""


@dataclass(frozen=True)
class Stored:
    """One tensor."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name for it: F32, F16, BF16, ..."""


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Name -> tensor of one component's folder; empty where it has no safetensors weights."""
    files = (file for pattern in WEIGHTS for file in sorted(folder.glob(pattern)))
    return {name: tensor for file in files for name, tensor in _headers(file)}


def stored_dtype(section: PolicySection) -> Literal["float32", "bfloat16"]:
    """bfloat16 where most of the policy's values are stored in it, else float32."""
    tensors = [tensor for component in components(section) for tensor in stored_tensors(component).values()]
    values = sum(prod(tensor.shape) for tensor in tensors)
    brief = sum(prod(tensor.shape) for tensor in tensors if tensor.dtype == "BF16")
    return "bfloat16" if 2 * brief > values else "float32"


def check_adapter(file: Path, section: PolicySection) -> None:
    """Raise InputError for an adapter that the run's adapter cannot start from: one for another model, other layers or
    a higher rank. If the weights are not in safetensors, nothing can be compared before loading."""
    shapes = _layers(section)
    if not shapes:
        return
    pairs = read_adapter(file, modules=shapes, layout=section.layout).pairs
    suffixes = tuple(f".{suffix}" for suffix in section.lora_targets[section.lora.targets])
    extra = sorted(name for name in pairs if not name.endswith(suffixes))
    if extra:
        raise InputError(
            f"{file}: adapts layers that policy.lora.targets '{section.lora.targets}' leaves out: {extra[:3]} "
            f"({len(extra)})"
        )
    for name, pair in pairs.items():
        expected, got = shapes[name], (len(pair.b), *pair.a.shape[1:])
        if expected != got:
            raise InputError(f"{file}: is for a layer {name} of shape {got}, this model's has {expected}")
        if pair.rank > section.lora.rank:
            raise InputError(
                f"{file}: {name} has rank {pair.rank}, the run's adapter {section.lora.rank}; write "
                f"policy.lora.rank={max(pair.rank for pair in pairs.values())}"
            )


def _layers(section: PolicySection) -> dict[str, tuple[int, ...]]:
    """`<component>.<layer>` -> shape of every matrix and kernel in the components that take adapters."""
    return {
        f"{component.name}.{name.removesuffix('.weight')}": tensor.shape
        for component in components(section)
        if component.name in section.trained
        for name, tensor in stored_tensors(component).items()
        if name.endswith(".weight") and len(tensor.shape) in (2, 4)
    }


def components(section: PolicySection) -> Iterator[Path]:
    """The folders of the policy's models."""
    folder = section.folder()
    return iter(dict.fromkeys(folder / Path(file).parts[0] for file in section.files))


def _headers(file: Path) -> Iterator[tuple[str, Stored]]:
    with safe_open(file, framework="numpy") as handle:
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part = handle.get_slice(name)
            yield name, Stored(tuple(part.get_shape()), part.get_dtype())
