"""Merges published NAOSD and GDPO-SR checkpoints into the models of a Stable Diffusion 2.1 folder.

One pickled mapping of plain lists, numbers and tensors per file:

    {unet,vae}_lora_{encoder,decoder,others}_modules   module names of three adapters
    rank_unet, rank_vae                                 LoRA rank; alpha is PEFT's default 8
    state_dict_{unet,vae}                               lora_A / lora_B of `default_{encoder,decoder,others}`, and the
                                                        whole of the UNet's conv_in

GDPO-SR's file has the UNet's part only and is merged on top of NAOSD's.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from rl.errors import InputError, MissingInput

PARTS = ("encoder", "decoder", "others")
ALPHA = 8
"""The published code leaves `lora_alpha` unset; PEFT's default is 8."""


def merge_published(unet: nn.Module, vae: nn.Module, file: Path) -> None:
    """W <- W + alpha/r B A for every layer that the file names.

    Raises:
        MissingInput: no such file.
        InputError: not this layout, or for another model.
    """
    if not file.is_file():
        raise MissingInput(f"policy.merge: no such file {file}")
    try:
        # weights_only: a pickle can run code; tensors and plain values cannot
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(f"{file}: expected tensors and plain values, got something else ({error})") from error
    if "state_dict_unet" not in state:
        raise InputError(f"{file}: expected state_dict_unet, rank_unet and module names, got {sorted(state)[:8]}")
    for name, model in (("unet", unet), ("vae", vae)):
        if f"state_dict_{name}" in state:
            _merge(model, state, name, file)


def _merge(model: Any, state: dict[str, Any], name: str, file: Path) -> None:
    rank, tensors = state[f"rank_{name}"], state[f"state_dict_{name}"]
    added = []
    try:
        for part in PARTS:
            modules = state.get(f"{name}_lora_{part}_modules") or []
            if any(f".default_{part}." in key for key in tensors):
                model.add_adapter(LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=modules), f"default_{part}")
                added.append(f"default_{part}")
        _copy(dict(model.named_parameters()), tensors)
    except (ValueError, KeyError) as error:
        raise InputError(f"{file}: does not fit this {type(model).__name__}: {error}") from error
    model.set_adapter(added)
    model.fuse_lora(adapter_names=added)
    model.unload_lora()


@torch.no_grad()
def _copy(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    unknown = sorted(set(tensors) - set(parameters))
    missing = sorted(name for name in parameters if "lora_" in name and name not in tensors)
    if unknown or missing:
        raise ValueError(f"unknown {unknown[:3]} ({len(unknown)}), missing {missing[:3]} ({len(missing)})")
    for key, value in tensors.items():
        if parameters[key].shape != value.shape:
            raise ValueError(f"{key} has shape {tuple(value.shape)}, expected {tuple(parameters[key].shape)}")
        parameters[key].copy_(value)
