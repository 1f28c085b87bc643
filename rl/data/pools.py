"""Pools of candidates on disk: a folder with `pool.jsonl`, one LR image per line, paths relative to the folder.

    {"lr": "lr/0001.png", "hr": "hr/0001.png" or null, "scale": 4, "prompt": "",
     "candidates": ["sr/0001_00.png", ...], "scores": {"psnr_y": [27.1, ...], "musiq": [61.0, ...]}}

Scores are raw, one number per candidate, higher is better. Every epoch visits every image once, in its own order.
Left out: making pools, and candidates stored only as latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl import jsonl
from rl.config.offline import OfflineConfig
from rl.data.photos import load_rgb
from rl.data.source import epoch_order
from rl.errors import InputError, MissingInput
from rl.types import F64, U8, RolloutGroup, SRTask

POOL_FILE = "pool.jsonl"
POOL = "pool"
"""Placeholder digest for mined groups, whose adapter is unknown."""


@dataclass(frozen=True)
class PoolRecord:
    """One LR image of a pool."""

    folder: Path
    lr: str
    hr: str | None
    scale: int
    prompt: str
    candidates: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    """`[R][G]` in the order of the recipe."""


class PoolSource:
    """ordinal -> task, group and scores `[G, R]`, a pure function of (recipe, seed).

    Raises:
        InputError: a record lacks something that the recipe reads; the message names file and line.
    """

    def __init__(self, config: OfflineConfig) -> None:
        names = [score.name for score in config.scores]
        self._seed = config.seed
        self._records = [
            record
            for path in config.pools.path
            for record in read_pool(Path(path).expanduser(), names, config.pools.group_size)
        ]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def has_hr(self) -> bool:
        """Every image has ground truth."""
        return all(record.hr is not None for record in self._records)

    def item(self, ordinal: int) -> tuple[SRTask, RolloutGroup, F64]:
        """Item `ordinal` of the stream, with pixels read from disk."""
        epoch, position = divmod(ordinal, len(self._records))
        record = self._records[epoch_order(self._seed, epoch, len(self._records))[position]]
        images = np.stack([_chw(record.folder / file) for file in record.candidates])
        hr = None if record.hr is None else _chw(record.folder / record.hr)
        task = SRTask(ordinal, record.lr, _chw(record.folder / record.lr), hr, record.scale, self._seed, record.prompt)
        _check_sizes(record, task, images)
        members = tuple(range(len(images)))
        latents = np.empty((len(images), 0, 0, 0), np.float32)
        group = RolloutGroup(ordinal, record.lr, 0, POOL, members, latents, images)
        return task, group, np.array(record.scores, dtype=np.float64).T


def read_pool(folder: Path, names: Sequence[str], group_size: int) -> list[PoolRecord]:
    """The records of one pool; no pixels are read."""
    file = folder / POOL_FILE
    if not file.is_file():
        raise MissingInput(f"pools.path {folder}: expected a folder with {POOL_FILE}, found none")
    records = [
        _record(folder, raw, names, group_size, f"{file}:{line}") for line, raw in enumerate(jsonl.read(file), start=1)
    ]
    if not records:
        raise InputError(f"{file}: expected at least one line, got an empty file")
    return records


def _record(folder: Path, raw: Any, names: Sequence[str], group_size: int, where: str) -> PoolRecord:
    match raw:
        case {"lr": str(lr), "scale": int(scale), "candidates": list(candidates), "scores": dict(scores)}:
            pass
        case _:
            raise InputError(f"{where}: expected lr, scale, candidates and scores, got {sorted(raw)}")
    if len(candidates) < group_size:
        raise InputError(f"{where}: expected at least pools.group_size {group_size} candidates, got {len(candidates)}")
    for name in names:
        values = scores.get(name)
        if not isinstance(values, list) or len(values) != len(candidates) or not np.isfinite(values).all():
            got = "none" if values is None else repr(values)[:60]
            raise InputError(
                f"{where}: expected {len(candidates)} finite scores '{name}', got {got}; it has {', '.join(scores)}"
            )
    hr = raw.get("hr")
    missing = [path for path in (lr, hr, *candidates) if path is not None and not (folder / path).is_file()]
    if missing:
        raise MissingInput(f"{where}: no such file {folder / missing[0]} ({len(missing)} missing)")
    kept = tuple(tuple(float(v) for v in scores[name][:group_size]) for name in names)
    return PoolRecord(folder, lr, hr, scale, raw.get("prompt", ""), tuple(candidates[:group_size]), kept)


def _check_sizes(record: PoolRecord, task: SRTask, images: U8) -> None:
    expected = (3, task.lr.shape[1] * task.scale, task.lr.shape[2] * task.scale)
    for what, shape in (("candidates", images.shape[1:]), ("hr", None if task.hr is None else task.hr.shape)):
        if shape is not None and shape != expected:
            raise InputError(f"{record.folder}/{record.lr}: expected {what} {expected}, got {shape}")


def _chw(path: Path) -> U8:
    return np.ascontiguousarray(load_rgb(path).transpose(2, 0, 1))
