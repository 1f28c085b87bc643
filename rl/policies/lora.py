"""LoRA adapters of a policy: `policy` (trained), `old` (behaviour), and the base with adapters off (reference).

Adapters are read and written under diffusers' LoRA names (`transformer.<module>.lora_A.weight`), the form in which
they travel, are digested, and are exported.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rl.config.policy import LORA_TARGETS, LoraConfig
from rl.errors import InputError
from rl.export import read_lora_header
from rl.types import LoraSnapshot, adapter_digest

POLICY, OLD = "policy", "old"


class SnapshotRefused(RuntimeError):
    """A pushed adapter that is not whole: other tensors than the adapter has, or a digest that they do not carry."""


Arrays = dict[str, NDArray[np.generic]]


def add_adapters(backbone: Any, config: LoraConfig, names: tuple[str, ...]) -> None:
    """Put float32 adapters of equal shape on `backbone`; A is Gaussian, B zero, all start from the same values."""
    targets = target_modules(backbone, LORA_TARGETS[config.targets])
    for name in names:
        peft_config = PeftLoraConfig(
            r=config.rank, lora_alpha=config.alpha, init_lora_weights="gaussian", target_modules=targets
        )
        with warnings.catch_warnings():
            # PEFT takes a second adapter for a mistake
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            backbone.add_adapter(peft_config, adapter_name=name)
        for parameter in adapter_parameters(backbone, name).values():
            # PEFT gives an adapter the base's dtype; AdamW's small steps vanish in bfloat16
            parameter.data = parameter.data.float()
    first = adapter_parameters(backbone, names[0])
    if config.init_from is not None:
        with _blaming(config.init_from):
            load_into(first, load_file(config.init_from), source="its tensors")
    for name in names[1:]:
        copy_adapter(first, adapter_parameters(backbone, name))
    backbone.set_adapter(names[0])


def target_modules(backbone: nn.Module, suffixes: tuple[str, ...]) -> list[str]:
    """Full names of the Linear and Conv2d layers that end with one of `suffixes`; one that matches nothing is an error.

    Full names because the bare suffix `to_out` would also hit the ModuleList of FLUX.2's double blocks.
    """
    layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    found = {suffix: [name for name in layers if f".{name}".endswith("." + suffix)] for suffix in suffixes}
    missing = [suffix for suffix, names in found.items() if not names]
    if missing:
        raise ValueError(f"LoRA targets {missing} match no Linear or Conv2d layer of {type(backbone).__name__}")
    return sorted(set().union(*found.values()))


def adapter_parameters(backbone: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """diffusers LoRA name -> parameter of one adapter, in module order."""
    prefix = "unet." if isinstance(backbone, UNet2DConditionModel) else "transformer."
    marker = f".{adapter}."
    found = {
        prefix + name.replace(marker, "."): parameter
        for name, parameter in backbone.named_parameters()
        if marker in name and ".lora_" in name
    }
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no adapter '{adapter}'")
    return found


def copy_adapter(source: Mapping[str, Tensor], target: Mapping[str, nn.Parameter]) -> None:
    """Copy values, same names required."""
    load_into(target, {name: value.detach() for name, value in source.items()}, source="another adapter")


@torch.no_grad()
def load_into(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `parameters`; names and shapes must agree exactly."""
    _check_names(set(parameters), set(tensors), source)
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)} "
                "(another rank?)"
            )
        parameter.copy_(tensors[name])


def _check_names(expected: set[str], got: set[str], source: str) -> None:
    if expected != got:
        missing, extra = sorted(expected - got), sorted(got - expected)
        raise ValueError(
            f"{source}: adapter misses {missing[:3]} ({len(missing)}), has extra {extra[:3]} ({len(extra)})"
        )


@contextmanager
def using(backbone: Any, adapter: str | None) -> Iterator[None]:
    """Run with `adapter`, or with none for the reference; the trained adapter is active again afterwards.

    Only the active name changes: PEFT's `set_adapter` would also flip `requires_grad`, which DeepSpeed must not see.
    """
    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._disable_adapters = adapter is None
        if adapter is not None:
            layer._active_adapter = adapter
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def take_snapshot(adapter: Mapping[str, Tensor], version: int) -> LoraSnapshot:
    """Gather an adapter to host memory and digest it."""
    tensors: Arrays = {name: _to_numpy(value.detach()) for name, value in adapter.items()}
    dtype = str(next(iter(adapter.values())).dtype).removeprefix("torch.")
    return LoraSnapshot(version, adapter_digest(tensors, dtype), tensors, dtype)


def install_snapshot(parameters: Mapping[str, nn.Parameter], snapshot: LoraSnapshot) -> None:
    """Make an adapter hold a snapshot. On the CPU its tensors alias the snapshot's (read-only, shared) memory, so
    that any number of actors on one machine load an adapter without copying it; never train such an adapter.

    Raises:
        SnapshotRefused: names, a shape or the dtype differ from the adapter's; nothing was changed.
    """
    values = {name: _from_numpy(array, snapshot.dtype) for name, array in snapshot.tensors.items()}
    try:
        _check_names(set(parameters), set(values), f"snapshot {snapshot.version}")
    except ValueError as error:
        raise SnapshotRefused(f"{error}; learner and workers need the same policy.lora") from error
    for name, parameter in parameters.items():
        value = values[name]
        if value.shape != parameter.shape or value.dtype != parameter.dtype:
            raise SnapshotRefused(
                f"snapshot {snapshot.version}: {name} is {tuple(value.shape)} {value.dtype}, the adapter has "
                f"{tuple(parameter.shape)} {parameter.dtype}; learner and workers need the same policy.lora"
            )
    for name, parameter in parameters.items():
        parameter.data = values[name].to(parameter.device)


def installed_digest(parameters: Mapping[str, Tensor]) -> str:
    """Digest of what an adapter holds now."""
    return take_snapshot(parameters, -1).digest


def _to_numpy(value: Tensor) -> NDArray[np.generic]:
    host = value.contiguous().cpu()
    return host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.numpy()


def _from_numpy(array: NDArray[np.generic], dtype: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        value = torch.from_numpy(array)
    return value.view(torch.bfloat16) if dtype == "bfloat16" else value


def attach_file(backbone: Any, file: Path) -> None:
    """Load an exported adapter as `policy`, with the rank, alpha and modules of its header."""
    header = read_lora_header(file)["adapter"]
    rank, alpha, modules = header["r"], header["lora_alpha"], header["target_modules"]
    with _blaming(file):
        backbone.add_adapter(PeftLoraConfig(r=rank, lora_alpha=alpha, target_modules=modules), adapter_name=POLICY)
        load_into(adapter_parameters(backbone, POLICY), load_file(file), source="its tensors")


@contextmanager
def _blaming(file: Path | str) -> Iterator[None]:
    """PEFT and safetensors answer a file that does not fit with errors that do not name it."""
    try:
        yield
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{file}: not an adapter of this policy: {error}") from error
