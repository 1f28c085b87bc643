"""A learner's state on disk: DeepSpeed's checkpoint (policy adapter, optimiser shards) beside the behaviour history
and the EMA as safetensors. The frozen base is never written."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from learner.learner import Learner

_TAG = "deepspeed"


def save(learner: "Learner", folder: Path) -> None:
    """Every rank calls this with the same folder; rank 0 writes the shared parts."""
    folder.mkdir(parents=True, exist_ok=True)
    learner.engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True, save_latest=False)
    if learner.engine.global_rank == 0:
        for version, adapter in learner.history.items():
            save_file({name: value.contiguous() for name, value in adapter.items()}, _old_file(folder, version))
        save_file({name: value.contiguous() for name, value in learner.ema.items()}, folder / "ema.safetensors")
        state = {"version": learner.version, "updates": learner.updates, "history": sorted(learner.history)}
        (folder / "learner.json").write_text(json.dumps(state))


def load(learner: "Learner", folder: Path) -> None:
    """Restore what `save` wrote; an adapter of another shape is an error by name."""
    state = json.loads((folder / "learner.json").read_text())
    path, _ = learner.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    if path is None:
        raise FileNotFoundError(f"{folder}: expected a DeepSpeed checkpoint '{_TAG}', found none")
    learner.version, learner.updates = state["version"], state["updates"]
    learner.history = {version: _load(learner, _old_file(folder, version)) for version in state["history"]}
    learner.ema = _load(learner, folder / "ema.safetensors")


def _load(learner: "Learner", file: Path) -> dict[str, torch.Tensor]:
    adapter = load_file(file)
    expected = {name: value.shape for name, value in learner.ema.items()}
    if {name: value.shape for name, value in adapter.items()} != expected:
        raise ValueError(f"{file}: the adapter's names or shapes differ from this run's (rank or targets changed?)")
    device = next(iter(learner.ema.values())).device
    return {name: value.to(device) for name, value in adapter.items()}


def _old_file(folder: Path, version: int) -> Path:
    return folder / f"old-{version}.safetensors"
