"""Is a checkpoint one of this run? Its configuration, and what lies in its input files: data, weights, adapters.

A path may change, what lies there may not. Some keys may change too (`MAY_CHANGE`); any other difference is refused
before a process starts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import xxhash

from actors.paths import inputs
from rl.config.base import SKIMAGE
from rl.config.online import RunConfig
from rl.config.policy import PolicySection, reference_file
from rl.config.training import TrainingSection

MAY_CHANGE = (
    # how long, what is kept and shown, where
    "train.steps", "checkpoint.*", "eval.every", "monitor.*", "ray.*", "run.*",
    # processes and what they get: the same numbers, up to rounding
    "*.cpus", "*.cpus_per_*", "*.device", "*.gpus", "*.gpus_per_*", "*.replicas", "*.threads", "*.workers",
    "*.batch_groups", "*.batch_images", "*.slots", "learner.ranks", "learner.zero_stage",
    "policy.gradient_checkpointing", "rollout.autoscale*",
    # patience
    "*.deadline_s", "*.retries", "fleet.*",
    # what to turn down before resuming a run that diverged
    "advantage.std_floor", "learner.optimizer.grad_clip", "learner.optimizer.lr",
)  # fmt: skip
"""Keys of a recipe that a resumed run may set otherwise; `*` stands for any part of a dotted key."""

_MISSING = "(no such key)"
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Change:
    """A difference between a checkpoint and this run."""

    key: str
    then: object
    now: object

    @property
    def allowed(self) -> bool:
        return any(fnmatch(self.key, pattern) for pattern in MAY_CHANGE)

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.then)} in the checkpoint, {json.dumps(self.now)} now"


@dataclass(frozen=True)
class RunIdentity:
    """What a run is."""

    config: Mapping[str, Any]
    """Dotted key -> value."""
    files: Mapping[str, str]
    """Dotted key of an input -> digest of names and bytes, in order, of what lies there."""

    @classmethod
    def of(cls, config: TrainingSection) -> Self:
        """Reads every byte of the data and the weights."""
        config = config.absolute(Path.cwd())
        values = dict(_flat(json.loads(config.model_dump_json())))
        return cls(values, {key: _digest(paths) for key, paths in _inputs(config).items()})

    def changes(self, then: "RunIdentity") -> list[Change]:
        """What differs from a checkpoint's. A path counts by what lies there, where both have read it."""
        read = self.files.keys() & then.files.keys()
        keys = dict.fromkeys([*then.config, *self.config])
        values = [
            Change(key, then.config.get(key, _MISSING), self.config.get(key, _MISSING))
            for key in keys
            if key not in read and then.config.get(key, _MISSING) != self.config.get(key, _MISSING)
        ]
        contents = [
            Change(f"what {key} holds", then.files[key], self.files[key])
            for key in self.files
            if key in read and then.files[key] != self.files[key]
        ]
        return values + contents

    def to_json(self) -> dict[str, Any]:
        return {"config": dict(self.config), "files": dict(self.files)}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        return cls(state["config"], state["files"])


def _flat(value: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; a list is a value unless it holds sections."""
    for name, item in value.items():
        key = f"{where}{name}"
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{key}.")
        elif isinstance(item, list) and item and all(isinstance(part, Mapping) for part in item):
            yield from _flat({str(i): part for i, part in enumerate(item)}, f"{key}.")
        else:
            yield key, item


def _inputs(config: TrainingSection) -> dict[str, list[str]]:
    """Dotted key -> files and folders."""
    found: dict[str, list[str]] = {}
    for key, path in inputs(config):
        found.setdefault(key, []).append(path)
    found["policy.path"] = [str(path) for path in policy_files(config.policy)]
    reference = reference_file(config.policy)
    if reference is not None:
        found["policy.reference"] = [reference]
    for i, reward in enumerate(config.rewards if isinstance(config, RunConfig) else ()):
        # a file that is still to be downloaded is known from the next checkpoint on
        weights = reward.weights() or ()
        if weights and all(file.found for file in weights):
            found[f"rewards.{i}.weights"] = [str(file.path) for file in weights]
    return found


def policy_files(section: PolicySection) -> list[Path]:
    """The model's folders and files that the policy reads."""
    folder = section.folder()
    named = dict.fromkeys(folder / Path(file).parts[0] for file in (*section.files, *section.text_files))
    prompts = [section.prompt_file(folder)] if section.reads_text else []
    return [path for path in (*named, *prompts) if path.exists()]


def _digest(paths: Sequence[str]) -> str:
    """Of the names and bytes of all files, in order; a folder's in the order of their names, without hidden ones."""
    state = xxhash.xxh3_128()
    with ThreadPoolExecutor() as threads:
        for path in paths:
            if path.startswith(SKIMAGE):
                state.update(path.encode() + b"\n")
                continue
            names = dict(_files(Path(path).expanduser()))
            for name, digest in zip(names, threads.map(_file_digest, names.values()), strict=True):
                state.update(f"{name} {digest}\n".encode())
    return state.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


def _file_digest(path: Path) -> str:
    state, buffer = xxhash.xxh3_128(), bytearray(_BUFFER)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(memoryview(buffer)[:count])
    return state.hexdigest()
