"""A learner's state on disk: safetensors and JSON next to DeepSpeed's own folder. The frozen base is never written."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

STATE_FILE, EMA_FILE = "learner.json", "ema.safetensors"
Adapter = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class LearnerState:
    """A rank's state apart from the trained adapter and its optimiser; the same on every rank."""

    version: int
    updates: int
    reference_digest: str | None
    """Digest of the reference adapter that losses compare against; None for the base."""
    history: Mapping[int, Adapter]
    """Published adapters by version."""
    ema: Adapter


@dataclass(frozen=True)
class _Facts:
    version: int
    updates: int
    reference_digest: str | None
    history: list[int]


def write_state(state: LearnerState, folder: Path) -> None:
    """Rank 0 writes what all ranks share."""
    folder.mkdir(parents=True, exist_ok=True)
    for version, adapter in state.history.items():
        save_file(_contiguous(adapter), _history_file(folder, version))
    save_file(_contiguous(state.ema), folder / EMA_FILE)
    facts = _Facts(state.version, state.updates, state.reference_digest, sorted(state.history))
    (folder / STATE_FILE).write_text(json.dumps(asdict(facts)))


def read_state(folder: Path, like: Mapping[str, Tensor]) -> LearnerState:
    """What `write_state` wrote, on the device of `like`.

    Raises:
        ValueError: an adapter with names or shapes that differ from `like`.
    """
    facts = _Facts(**json.loads((folder / STATE_FILE).read_text()))
    history = {version: _read(_history_file(folder, version), like) for version in facts.history}
    ema = _read(folder / EMA_FILE, like)
    return LearnerState(facts.version, facts.updates, facts.reference_digest, history, ema)


def _read(file: Path, like: Mapping[str, Tensor]) -> Adapter:
    adapter = load_file(file)
    if {name: value.shape for name, value in adapter.items()} != {name: value.shape for name, value in like.items()}:
        raise ValueError(f"{file}: the adapter's names or shapes differ from this run's (rank or targets changed?)")
    device = next(iter(like.values())).device
    return {name: value.to(device) for name, value in adapter.items()}


def _contiguous(adapter: Mapping[str, Tensor]) -> Adapter:
    return {name: value.contiguous() for name, value in adapter.items()}


def _history_file(folder: Path, version: int) -> Path:
    return folder / f"old-{version}.safetensors"
