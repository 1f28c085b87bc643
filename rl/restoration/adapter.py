"""Attaches a trained adapter to a policy for restoring, with the file's own layers, rank and strength.

Left out: training it further, which needs the adapters of `rl.policies.lora`.
"""

from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from torch import nn

from rl.errors import InputError
from rl.policies.base import Policy
from rl.policies.lora import POLICY, layer_names, load_into
from rl.policies.lora_file import read_adapter, rescaled


def attach_adapter(policy: Policy, file: Path) -> int:
    """Inject the adapter into the policy's modules, where it stays active; returns the number of its layers.

    Raises:
        InputError: not an adapter, or one for another model; the message names the file.
    """
    try:
        return _attach(policy, file)
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{file}: not an adapter of this policy: {error}") from error


def _attach(policy: Policy, file: Path) -> int:
    adapter = read_adapter(file, modules=layer_names(policy.modules), layout=policy.section.layout)
    rank = max(pair.rank for pair in adapter.pairs.values())
    for component, module in policy.modules.items():
        paths = [name.removeprefix(f"{component}.") for name in adapter.pairs if name.startswith(f"{component}.")]
        if paths:
            _inject(module, paths, rank)
    # alpha = rank: the strength is folded into B, and layers of lower rank are padded with zeros
    tensors = {name: torch.from_numpy(array) for name, array in rescaled(adapter, rank=rank, alpha=rank).items()}
    load_into(_parameters(policy), tensors, source="its tensors")
    return len(adapter.pairs)


def _inject(module: nn.Module, paths: list[str], rank: int) -> None:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=paths)
    inject_adapter_in_model(config, module, adapter_name=POLICY)


def _parameters(policy: Policy) -> dict[str, nn.Parameter]:
    """Name in a file -> parameter; float32 as in training, whatever the base's dtype."""
    found = {}
    for component, module in policy.modules.items():
        for path, parameter in module.named_parameters():
            if ".lora_" in path:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(False)
                found[f"{component}.{path.replace(f'.{POLICY}.', '.')}"] = parameter
    return found
