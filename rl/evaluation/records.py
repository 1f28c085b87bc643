"""Scores of held-out crops, one record per (phase, policy version, crop, seed), in `DIR/eval.jsonl`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rl import jsonl
from rl.evaluation.bootstrap import Interval, paired_bootstrap
from rl.types import F64

EVAL_FILE = "eval.jsonl"

Phase = Literal["start", "step", "end"]


@dataclass(frozen=True)
class EvalRecord:
    """One restored held-out crop."""

    phase: Phase
    """`start`: before the first update; `end`: after the last one; `step`: in between."""
    policy_version: int
    photo: str
    """The photograph that the crop comes from: the unit that the bootstrap draws."""
    crop_id: str
    seed: int
    scores: Mapping[str, float]
    """Reward name -> raw score in the metric's own unit, higher is better."""

    def to_json(self) -> dict[str, object]:
        return {
            "phase": self.phase,
            "policy_version": self.policy_version,
            "photo": self.photo,
            "crop_id": self.crop_id,
            "seed": self.seed,
            "scores": dict(self.scores),
        }

    @staticmethod
    def from_json(record: Mapping[str, object]) -> "EvalRecord":
        match record:
            case {
                "phase": ("start" | "step" | "end") as phase,
                "policy_version": int(version),
                "photo": str(photo),
                "crop_id": str(crop_id),
                "seed": int(seed),
                "scores": dict(scores),
            }:
                named = {str(name): float(score) for name, score in scores.items()}
                return EvalRecord(phase, version, photo, crop_id, seed, named)
        raise ValueError(
            f"evaluation record: expected phase {'|'.join(get_args(Phase))}, policy_version, photo, crop_id, seed "
            f"and scores, got {dict(record)!r}"
        )


@dataclass(frozen=True)
class Change:
    """Before and after of one reward over the pairs (crop, seed) of the first and the last evaluation."""

    name: str
    before: float
    after: float
    difference: Interval
    improved_share: float
    """Share of pairs with a higher score afterwards."""
    pairs: int
    photos: int


@dataclass(frozen=True)
class Ceiling:
    """What picking the best of several samples gives without any training."""

    samples: int
    """Of each crop."""
    best: Mapping[str, float]
    """Reward -> mean over crops of the best sample's score, each reward picking for itself."""


class NotComparable(ValueError):
    """The first and the last evaluation have different crops, seeds or rewards, so no difference can be taken."""


def append_eval(path: Path, records: Iterable[EvalRecord]) -> None:
    jsonl.append(path, (record.to_json() for record in records))


def read_eval(path: Path) -> tuple[EvalRecord, ...]:
    """All records; where a resumed run repeated an evaluation, the last line counts."""
    latest = {}
    for record in map(EvalRecord.from_json, jsonl.read(path)):
        latest[record.phase, record.policy_version, record.crop_id, record.seed] = record
    return tuple(latest.values())


def changes(records: Iterable[EvalRecord], *, level: float = 0.95) -> tuple[Change, ...]:
    """One row per reward, from phase `start` to the newest version of phase `end`; empty if either is missing. Crops
    that a server failed on are in one of them only, and count in neither.

    Raises:
        NotComparable: `eval.samples`, `eval.data` or the rewards changed between them.
    """
    everything = tuple(records)
    start = _by_pair(record for record in everything if record.phase == "start")
    newest = max((record.policy_version for record in everything if record.phase == "end"), default=None)
    end = _by_pair(record for record in everything if record.phase == "end" and record.policy_version == newest)
    if not start or not end:
        return ()
    crops = {crop for crop, _ in start} & {crop for crop, _ in end}
    lone = sorted(pair for pair in start.keys() ^ end.keys() if pair[0] in crops or not crops)
    if lone:
        raise NotComparable(
            f"evaluation: expected the same (crop, seed) pairs at start and end, got {len(start)} and {len(end)}; "
            f"unpaired: {lone[:3]}{' ...' if len(lone) > 3 else ''}"
        )
    pairs = sorted(start.keys() & end.keys())
    photos = np.unique([start[pair].photo for pair in pairs], return_inverse=True)[1]
    names = tuple(start[pairs[0]].scores)
    return tuple(_change(name, _column(start, pairs, name), _column(end, pairs, name), photos, level) for name in names)


def ceiling(records: Iterable[EvalRecord]) -> Ceiling | None:
    """Best of N for the starting policy, from phase `start`; None with one sample per crop. N is the fewest samples of
    any crop; only the first N of each count."""
    crops: dict[str, list[EvalRecord]] = {}
    for record in records:
        if record.phase == "start":
            crops.setdefault(record.crop_id, []).append(record)
    samples = min((len(crop) for crop in crops.values()), default=0)
    if samples < 2:
        return None
    names = next(iter(crops.values()))[0].scores
    best = {
        name: float(np.mean([max(record.scores[name] for record in crop[:samples]) for crop in crops.values()]))
        for name in names
    }
    return Ceiling(samples, best)


_Pair = tuple[str, int]


def _by_pair(records: Iterable[EvalRecord]) -> dict[_Pair, EvalRecord]:
    return {(record.crop_id, record.seed): record for record in records}


def _column(records: Mapping[_Pair, EvalRecord], pairs: list[_Pair], name: str) -> F64:
    lacking = [pair for pair in pairs if name not in records[pair].scores]
    if lacking:
        raise NotComparable(f"evaluation: expected a score '{name}' for every crop, {lacking[0]} has none")
    return np.array([records[pair].scores[name] for pair in pairs])


def _change(name: str, before: F64, after: F64, photos: NDArray[np.int64], level: float) -> Change:
    return Change(
        name=name,
        before=float(before.mean()),
        after=float(after.mean()),
        difference=paired_bootstrap(before, after, level=level, clusters=photos),
        improved_share=float((after > before).mean()),
        pairs=before.size,
        photos=int(photos.max()) + 1,
    )
