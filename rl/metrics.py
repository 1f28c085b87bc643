"""The table of metric keys `<source>/<quantity>`, and the typed record of one step.

A key is an enum member, so its spelling exists once; per-reward keys contain `<name>`, filled in by `of(name)`. A
record refuses keys outside the table and non-finite values, so a typo or a NaN cannot be logged.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import Self

import numpy as np

from rl import jsonl
from rl.advantages import AdvantageBatch, Weighed
from rl.types import F64

METRICS_FILE = "metrics.jsonl"
HISTOGRAM_BINS = 10
_NAME = "<name>"

Value = float | list[float]


@unique
class Key(StrEnum):
    """Every metric: key, unit, meaning. `score` is the reward's own unit divided by its configured `scale`."""

    unit: str
    meaning: str

    def __new__(cls, key: str, unit: str, meaning: str) -> Self:
        member = str.__new__(cls, key)
        member._value_ = key
        member.unit = unit
        member.meaning = meaning
        return member

    def of(self, name: str) -> str:
        """The key of one reward: `Key.REWARD_MEAN.of("musiq")` is `reward/musiq/mean`."""
        if _NAME not in self.value:
            raise ValueError(f"metric '{self.value}' has no {_NAME}: use it as it is, not with of({name!r})")
        if not name or "/" in name or name == _NAME:
            raise ValueError(f"metric '{self.value}': expected a reward name without '/', got {name!r}")
        return self.value.replace(_NAME, name)

    REWARD_MEAN = "reward/<name>/mean", "score", "mean over all members of the batch"
    REWARD_STD = "reward/<name>/std", "score", "standard deviation over all members of the batch"
    REWARD_GROUP_STD = "reward/<name>/group_std", "score", "mean over groups of the unbiased std inside the group"
    REWARD_ZERO_VARIANCE = "reward/<name>/zero_variance_share", "0..1", "groups (or their cells) under std_floor"
    REWARD_FAILED = "reward/<name>/failed", "groups", "groups dropped in this step because this reward failed"
    REWARD_QUEUE_WAIT = "reward/queue_wait_s", "s", "mean wait of a sampled group until a reward server takes it"
    ADVANTAGE_STD_BEFORE = (
        "advantage/<name>/std_before_fusion",
        "1",
        "std over the batch of the reward's term, unweighted",
    )
    ADVANTAGE_STD = "advantage/std", "1", "standard deviation of the advantage over the batch"
    ADVANTAGE_ABS_MAX = "advantage/abs_max", "1", "largest |advantage| of the batch, before clipping"
    ADVANTAGE_LOCAL = (
        "advantage/local_share",
        "0..1",
        "share of the advantage's mean square that differs between the cells of a member; with advantage.spatial: map",
    )
    ADVANTAGE_R_HISTOGRAM = "advantage/r_histogram", "members", "reward weight r (per cell) in 10 equal bins of [0, 1]"
    LOSS_POLICY = "loss/policy", "1", "objective without the reference term"
    LOSS_KL = "loss/kl", "1", "distance to the reference, unweighted: mean squared prediction difference (nft)"
    LOSS_DRIFT = "loss/drift", "1", "mean squared prediction distance to the anchor (nft) or reference (gdpo, dpo)"
    LOSS_MARGIN = "loss/margin", "1", "preference logit: above 0 where the policy ranks the members as the rewards do"
    LOSS_ERROR = "loss/error", "1", "mean squared error of the policy's noise prediction on its own samples"
    RATIO_CLIPPED_LOW = "ratio/clipped_low", "0..1", "members whose likelihood ratio is below 1 - clip"
    RATIO_CLIPPED_HIGH = "ratio/clipped_high", "0..1", "members whose likelihood ratio is above 1 + clip"
    RATIO_DEVIATION = "ratio/max_deviation", "1", "largest |ratio - 1| of all micro-batches and ranks"
    RATIO_FRESH = (
        "ratio/fresh_deviation",
        "1",
        "largest |ratio - 1| in float32 on fresh groups, before the first update: 0",
    )
    LOSS_TOTAL = "loss/total", "1", "what the optimiser descends"
    OPTIM_GRAD_NORM = "optim/grad_norm", "1", "global L2 norm of the gradient, before clipping"
    OPTIM_LR = "optim/lr", "1", "learning rate of the last update"
    OPTIM_UPDATES = "optim/updates", "count", "optimiser updates since the run began"
    POLICY_VERSION = "policy/version", "count", "newest published adapter version"
    POLICY_AGE_MEAN = "policy/age_mean", "versions", "mean age of the trained groups: newest version - their version"
    POLICY_AGE_MAX = "policy/age_max", "versions", "age of the oldest trained group"
    PUBLISH_LAG = "publish/lag_s", "s", "end of the optimiser step until the last live actor has echoed the version"
    PUBLISH_GATHER = "publish/gather_s", "s", "gathering the adapter on the learner and hashing it"
    PUBLISH_PUT = "publish/put_s", "s", "putting the snapshot into the object store"
    PUBLISH_LOAD = "publish/load_s", "s", "slowest actor's copy of the snapshot into its adapter"
    PUBLISH_VERIFY = "publish/verify_s", "s", "slowest actor's digest of what it loaded"
    PUBLISH_TOTAL = "publish/total_s", "s", "whole push: gather, put, pull, load, verify, echo"
    PUBLISH_BYTES = "publish/bytes", "bytes", "size of the adapter's tensors"
    IDLE_ROLLOUT = "idle/rollout_share", "0..1", "share of the step in which rollout workers had no work"
    IDLE_REWARD = "idle/reward_share", "0..1", "share of the step in which reward servers had no work"
    IDLE_LEARNER = "idle/learner_share", "0..1", "share of the step in which the learner had no work"
    TIME_STEP = "time/step_s", "s", "wall time of the step"
    TIME_TAG = "time/tag_s", "s", "tagging for prompts, summed over the step's groups; where there is a tagger"
    TIME_SAMPLE = "time/sample_s", "s", "sampling, summed over the step's groups"
    TIME_SCORE = "time/score_s", "s", "scoring, summed over the step's groups and rewards"
    TIME_TRAIN = "time/train_s", "s", "learner's time from batch to updated adapter"
    PERF_IMAGES = "perf/images_per_s", "images/s", "trained images over the wall time of the step"
    TAGGER_FAILED = "tagger/failed", "groups", "groups dropped in this step because the tagger failed"
    GROUP_DROPPED = "group/dropped", "groups", "groups dropped in this step for whatever reason, and re-issued"
    GROUP_RESAMPLED = "group/resampled", "groups", "groups sampled again, as the same, because their node died"
    FLEET_READY = "fleet/<name>/ready", "members", "members of a role that may work, at the end of the step"
    FLEET_JOINED = "fleet/<name>/joined", "members", "members that joined in this step"
    FLEET_LOST = "fleet/<name>/lost", "members", "members lost in this step: died, hung, or failed too often"
    EVAL_FAILED = "eval/failed", "crops", "held-out crops without scores because a server failed on them"
    EVAL_MEAN = "eval/<name>/mean", "score", "mean over the held-out crops and seeds"
    EVAL_DELTA = "eval/<name>/delta", "score", "eval mean minus the mean at the start of the run"


@dataclass(frozen=True)
class Located:
    """A concrete key, parsed."""

    key: Key
    name: str | None
    """The reward, for a per-reward key."""


_PATTERNS = [(re.compile(re.escape(key.value).replace(re.escape(_NAME), "([^/]+)")), key) for key in Key]


def describe(key: str) -> Located:
    """The table's entry (`.key.unit`, `.key.meaning`) for a concrete key; KeyError with the nearest keys otherwise."""
    for pattern, entry in _PATTERNS:
        match = pattern.fullmatch(key)
        if match and _NAME not in key:
            return Located(entry, match.group(1) if pattern.groups else None)
    nearest = difflib.get_close_matches(key, [entry.value for entry in Key], n=3, cutoff=0.0)
    raise KeyError(f"unknown metric '{key}'; nearest: {', '.join(nearest)}; the table is rl.metrics.Key")


@dataclass(frozen=True)
class Metrics:
    """What one step reports; a step may write several records with different keys."""

    step: int
    wall_s: float
    """Seconds since this process started the run."""
    values: Mapping[str, Value]

    def __post_init__(self) -> None:
        for key, value in self.values.items():
            is_histogram = describe(key).key is Key.ADVANTAGE_R_HISTOGRAM
            if is_histogram != isinstance(value, list) or (is_histogram and len(_listed(value)) != HISTOGRAM_BINS):
                wanted = f"a list of {HISTOGRAM_BINS} counts" if is_histogram else "one number"
                raise ValueError(f"metric '{key}' at step {self.step}: expected {wanted}, got {value!r}")
            if not all(math.isfinite(number) for number in _listed(value)):
                raise ValueError(
                    f"metric '{key}' at step {self.step}: expected finite numbers, got {value!r}; leave the key out "
                    "where there is nothing to report, stop the run where a loss or gradient has diverged"
                )

    def to_json(self) -> dict[str, object]:
        """Flat: `step`, `wall_s`, then the metric keys."""
        values: dict[str, object] = {str(key): _plain(value) for key, value in self.values.items()}
        return {"step": self.step, "wall_s": round(self.wall_s, 3), **values}

    @staticmethod
    def from_json(record: Mapping[str, object]) -> "Metrics":
        values = {key: _value(key, raw) for key, raw in record.items() if key not in ("step", "wall_s")}
        step, wall_s = record.get("step"), record.get("wall_s")
        if not isinstance(step, int) or not isinstance(wall_s, int | float):
            raise TypeError(f"metrics record: expected numbers 'step' and 'wall_s', got {step!r} and {wall_s!r}")
        return Metrics(step, float(wall_s), values)


def read_metrics(path: Path) -> tuple[Metrics, ...]:
    """One record per step in step order.

    Records of the same step are merged. A run that resumes from a checkpoint goes back in steps; its records replace
    what the lost process had logged beyond that point.
    """
    merged: list[Metrics] = []
    for record in map(Metrics.from_json, jsonl.read(path)):
        while merged and merged[-1].step > record.step:
            merged.pop()
        if merged and merged[-1].step == record.step:
            record = Metrics(record.step, record.wall_s, {**merged.pop().values, **record.values})
        merged.append(record)
    return tuple(merged)


def batch_values(rewards: Sequence[Weighed], scores: F64, batch: AdvantageBatch, r: F64 | None) -> dict[str, Value]:
    """Reward and advantage metrics of one training batch: scores `[N, G, R]` raw; r, where the objective has one, of
    the shape of the advantages."""
    scaled = scores / np.array([reward.scale for reward in rewards])
    values: dict[str, Value] = {
        Key.ADVANTAGE_STD: float(batch.advantages.std()),
        Key.ADVANTAGE_ABS_MAX: float(np.abs(batch.advantages).max()),
    }
    if batch.advantages.ndim > 2:
        square = float(np.square(batch.advantages).mean())
        within = float(batch.advantages.var(axis=(2, 3)).mean())
        values[Key.ADVANTAGE_LOCAL] = within / square if square else 0.0
    if r is not None:
        counts = np.histogram(r, bins=HISTOGRAM_BINS, range=(0.0, 1.0))[0]
        values[Key.ADVANTAGE_R_HISTOGRAM] = counts.astype(float).tolist()
    for k, name in enumerate(reward.name for reward in rewards):
        values[Key.REWARD_MEAN.of(name)] = float(scaled[..., k].mean())
        values[Key.REWARD_STD.of(name)] = float(scaled[..., k].std())
        values[Key.REWARD_GROUP_STD.of(name)] = float(scaled[..., k].std(axis=1, ddof=1).mean())
        values[Key.REWARD_ZERO_VARIANCE.of(name)] = float(batch.zero_variance[..., k].mean())
        values[Key.ADVANTAGE_STD_BEFORE.of(name)] = float(batch.per_reward[..., k].std())
    return values


def names_of(key: Key, keys: Iterable[str]) -> tuple[str, ...]:
    """The rewards for which `keys` holds the given per-reward key, in order of appearance."""
    located = (describe(concrete) for concrete in keys)
    return tuple(dict.fromkeys(entry.name for entry in located if entry.key is key and entry.name is not None))


def _listed(value: Value) -> list[float]:
    return value if isinstance(value, list) else [value]


def _plain(value: Value) -> Value:
    # numpy scalars pass isinstance(float) but are not strict JSON
    return [float(number) for number in value] if isinstance(value, list) else float(value)


def _value(key: str, raw: object) -> Value:
    if isinstance(raw, list) and all(isinstance(number, int | float) for number in raw):
        return [float(number) for number in raw]
    if isinstance(raw, int | float):
        return float(raw)
    raise TypeError(f"metric '{key}': expected a number or a list of numbers, got {raw!r}")
