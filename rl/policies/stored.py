"""What a diffusers folder stores, read from the headers of its safetensors files alone. Torch-free.

Weights in another format are not looked into: they are found out when they are loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from rl.config.policy import PolicySection

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
"""Whole, or in parts; not the variants beside them."""


@dataclass(frozen=True)
class Stored:
    """One tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: F32, F16, BF16, ..."""


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


def components(section: PolicySection) -> Iterator[Path]:
    """The folders of the policy's models."""
    folder = section.folder()
    return iter(dict.fromkeys(folder / Path(file).parts[0] for file in section.files))


def _headers(file: Path) -> Iterator[tuple[str, Stored]]:
    with safe_open(file, framework="numpy") as handle:
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            part = handle.get_slice(name)
            yield name, Stored(tuple(part.get_shape()), part.get_dtype())
