"""LoRA adapters on the modules of a policy: `policy` (trained), `old` (what the loss is anchored to, or what a worker
samples with) and `reference` (frozen; absent where the reference is the base itself).

Adapters use diffusers' LoRA names (`transformer.<module>.lora_A.weight`) throughout: in files, transport, digests and
exports.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn

from rl.config.policy import reference_file
from rl.errors import InputError
from rl.policies.lora_file import read_adapter, rescaled
from rl.types import LoraSnapshot, adapter_digest

if TYPE_CHECKING:
    from rl.policies.base import Policy

POLICY, OLD, REFERENCE = "policy", "old", "reference"
Arrays = dict[str, NDArray[np.generic]]


class SnapshotRefused(RuntimeError):
    """A pushed adapter is not intact: its tensors differ from the adapter's, or do not match the digest."""


class Adapters:
    """Float32 adapters of equal shape on one frozen base; A is Gaussian, B zero, and all start from the same values.

    Args:
        policy: its modules get the adapters.
        names: the first is the active one, and the trained one if any is.

    Raises:
        InputError: a file named in the section does not fit the policy.
    """

    def __init__(self, policy: "Policy", *names: str) -> None:
        section = policy.section
        self._modules = policy.modules
        self._section = section
        self._targets = {
            component: target_modules(module, section.lora_targets[section.lora.targets])
            for component, module in policy.modules.items()
        }
        _refuse_unmatched(policy, self._targets)
        file = reference_file(section)
        self.reference: str | None = None if file is None else REFERENCE
        """The reference's adapter; None is the base with adapters off."""
        for name in names if file is None else (*names, REFERENCE):
            self._add(name)
        first = self.parameters(names[0])
        if section.lora.init_from is not None:
            self._load(first, section.lora.init_from, trained=True)
        for name in names[1:]:
            copy_adapter(first, self.parameters(name))
        if file is not None:
            self._load(self.parameters(REFERENCE), file, trained=False)
            for parameter in self.parameters(REFERENCE).values():
                parameter.requires_grad_(False)
        for layer in self._layers():
            layer.set_adapter(names[0])

    def _add(self, name: str) -> None:
        lora = self._section.lora
        for component, module in self._modules.items():
            if not self._targets[component]:
                continue
            config = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                init_lora_weights="gaussian",
                target_modules=self._targets[component],
            )
            with warnings.catch_warnings():
                # PEFT warns about a second adapter
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                inject_adapter_in_model(config, module, adapter_name=name)
        for parameter in self.parameters(name).values():
            # PEFT gives an adapter the base's dtype, but AdamW's small steps vanish in bfloat16
            parameter.data = parameter.data.float()
        for layer in self._layers():
            layer.lora_A[name].register_forward_pre_hook(_contiguous)

    @torch.no_grad()
    def _load(self, parameters: Mapping[str, nn.Parameter], file: str, *, trained: bool) -> None:
        """Give an adapter the effect of a file. Layers and ranks that the file lacks have no effect: B is zero. A is
        then the initial one if it will be trained, else zero too, so that every process has the same digest."""
        lora = self._section.lora
        initial = {name: parameter.detach().cpu().numpy() for name, parameter in parameters.items()}
        with _blaming(file):
            adapter = read_adapter(Path(file), modules=layer_names(self._modules), layout=self._section.layout)
            arrays = rescaled(adapter, lora.rank, lora.alpha, initial)
            if not trained:
                arrays = rescaled(adapter, lora.rank, lora.alpha)
                initial = {name: np.zeros_like(array) for name, array in initial.items()}
            values = {name: torch.tensor(array) for name, array in {**initial, **arrays}.items()}
            load_into(parameters, values, source="its tensors")

    def module_names(self) -> list[str]:
        """Every layer that carries an adapter, `<component>.<module>`."""
        return [f"{component}.{name}" for component, names in self._targets.items() for name in names]

    def _layers(self) -> list[BaseTunerLayer]:
        return [layer for module in self._modules.values() for layer in _layers(module)]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """diffusers LoRA name -> parameter of one adapter, in module order."""
        marker = f".{name}."
        found = {
            f"{component}.{path.replace(marker, '.')}": parameter
            for component, module in self._modules.items()
            for path, parameter in module.named_parameters()
            if marker in path and ".lora_" in path
        }
        if not found:
            raise ValueError(f"{list(self._modules)}: no adapter '{name}'")
        return found

    def bound(self, name: str) -> int:
        """Number of layers whose forward pass reads this adapter when it is active."""
        return sum(name in layer.lora_A and not layer.merged for layer in self._layers())

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Run with one adapter, or with the bare base for None; the previous one is restored afterwards."""
        with ExitStack() as stack:
            for module in self._modules.values():
                stack.enter_context(active(module, name))
            yield

    def reference_digest(self) -> str | None:
        """Digest of the reference's tensors; None where the reference is the base."""
        return None if self.reference is None else installed_digest(self.parameters(self.reference))


@contextmanager
def active(module: nn.Module, name: str | None) -> Iterator[None]:
    """Run one module with one adapter, or with the bare base for None; the previous one is restored afterwards.

    Only the active name changes: PEFT's `set_adapter` would also flip `requires_grad`, which DeepSpeed must not see.
    """
    layers = _layers(module)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = name
    try:
        yield
    finally:
        for layer, (was, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = was, disabled


def _contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """torch multiplies a non-contiguous input in another order if the weight requires a gradient. A trained and a
    frozen adapter with the same values (learner and worker) would then differ in the last bit."""
    return tuple(x.contiguous() for x in inputs)


def _layers(module: nn.Module) -> list[BaseTunerLayer]:
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def layer_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """Every Linear and Conv2d layer of the base, `<component>.<module>`, for resolving a file's names; with or without
    adapters on it."""
    return [
        f"{component}.{name.replace('.base_layer', '')}"
        for component, module in modules.items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name
    ]


def target_modules(module: nn.Module, suffixes: tuple[str, ...]) -> list[str]:
    """Full names of the Linear and Conv2d layers that end with one of `suffixes`.

    Full names, because the bare suffix `to_out` would also match the ModuleList of FLUX.2's double blocks.
    """
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return sorted(name for name in layers if any(f".{name}".endswith("." + suffix) for suffix in suffixes))


def _refuse_unmatched(policy: "Policy", targets: Mapping[str, list[str]]) -> None:
    """Refuse a suffix that matches no layer of any module and would train nothing."""
    names = [f".{name}" for found in targets.values() for name in found]
    suffixes = policy.section.lora_targets[policy.section.lora.targets]
    missing = [suffix for suffix in suffixes if not any(name.endswith("." + suffix) for name in names)]
    if missing:
        raise ValueError(f"LoRA targets {missing} match no Linear or Conv2d layer of {list(policy.modules)}")


def copy_adapter(source: Mapping[str, Tensor], target: Mapping[str, nn.Parameter]) -> None:
    """Copy values; the names must be the same."""
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


def take_snapshot(adapter: Mapping[str, Tensor], version: int) -> LoraSnapshot:
    """Gather an adapter to host memory and digest it."""
    tensors: Arrays = {name: _to_numpy(value.detach()) for name, value in adapter.items()}
    dtype = str(next(iter(adapter.values())).dtype).removeprefix("torch.")
    return LoraSnapshot(version, adapter_digest(tensors, dtype), tensors, dtype)


def install_snapshot(parameters: Mapping[str, nn.Parameter], snapshot: LoraSnapshot) -> None:
    """Install a snapshot in an adapter. On the CPU its tensors alias the snapshot's (read-only, shared) memory, so any
    number of actors on one machine can load it without a copy; never train such an adapter.

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
    """Digest of an adapter's current tensors."""
    return take_snapshot(parameters, -1).digest


def _to_numpy(value: Tensor) -> NDArray[np.generic]:
    host = value.contiguous().cpu()
    return host.view(torch.uint16).numpy() if host.dtype == torch.bfloat16 else host.numpy()


def _from_numpy(array: NDArray[np.generic], dtype: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        value = torch.from_numpy(array)
    return value.view(torch.bfloat16) if dtype == "bfloat16" else value


@contextmanager
def _blaming(file: Path | str) -> Iterator[None]:
    """Name the file in errors: those of PEFT and safetensors about a file that does not fit do not."""
    try:
        yield
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{file}: not an adapter of this policy: {error}") from error
