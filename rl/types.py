"""The data carriers: one frozen type per hop between processes.

    SRTask -> RolloutGroup -> RewardTable -> TrainGroup -> LoraSnapshot -> Echo

Arrays are numpy, so that Ray maps them read-only and without a copy on one machine, and the driver needs no torch.
Letters: G members of a group, R rewards, C latent channels, H W output size in pixels, h w size of the latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Enlargement = Literal["bicubic", "bilinear", "area"]


# LR source -> rollout worker, reward server, learner
@dataclass(frozen=True, eq=False)
class SRTask:
    """One LR image of the run's stream."""

    ordinal: int
    """Position in the stream, from 0; reissued only if a resumed run has not trained on it yet."""
    lr_id: str
    lr: U8
    """`[3, H/scale, W/scale]` RGB."""
    hr: U8 | None
    """`[3, H, W]` RGB, or None where the source has no ground truth."""
    scale: int
    seed: int
    """The run's seed; member seeds derive from (seed, ordinal, member) alone."""
    prompt: str = ""
    """What the text encoder sees; empty where the policy has one cached embedding."""
    enlargement: Enlargement = "bicubic"
    """How a policy enlarges the LR image to the output size before encoding it."""


# controller -> tagger server
@dataclass(frozen=True, eq=False)
class TagRequest:
    """One image to tag; its tags become the prompt of its task."""

    ordinal: int
    image: U8
    """`[3, H, W]` RGB: the HR crop or the LR image, as `tagger.image` says."""


# tagger server -> controller
@dataclass(frozen=True)
class ImageTags:
    """What a tagger saw in one image."""

    ordinal: int
    text: str
    """Never empty."""
    digest: str
    """`image_digest` of the tagged image, with which the controller checks that the text belongs to it."""
    seconds: float


# part of a RolloutGroup, for objectives that need a likelihood
@dataclass(frozen=True, eq=False)
class TrajectoryRecord:
    """The K trained stochastic steps of a group, float32 as computed: rounding would change their likelihood."""

    steps: tuple[int, ...]
    """Indices of the trained steps in the sampler's grid; step k leads from state k to state k + 1."""
    grid: tuple[int, ...]
    """Indices of the S states at which these steps begin or end: K + 1 if the steps are consecutive."""
    states: F32
    """`[S, G, C, h, w]`"""
    logp: F64
    """`[K, G]`, each step's log-probability under the behaviour policy, mean over C, h, w; with advantages per cell
    `[K, G, rows, columns]`, mean over C and the cell."""
    mean: F32 | None
    """`[K, G, C, h, w]`, means of the behaviour policy's Gaussians, for GRPO-Guard."""

    def before(self, slot: int) -> F32:
        """`[G, C, h, w]` at the start of the trained step `slot`."""
        return self._state(self.steps[slot])

    def after(self, slot: int) -> F32:
        """`[G, C, h, w]` at its end: the action taken."""
        return self._state(self.steps[slot] + 1)

    def _state(self, k: int) -> F32:
        state: F32 = self.states[self.grid.index(k)]
        return state


# rollout worker -> reward server and learner (object-store reference, put once)
@dataclass(frozen=True, eq=False)
class RolloutGroup:
    """G super-resolved candidates for one LR image, sampled with one adapter version."""

    ordinal: int
    lr_id: str
    policy_version: int
    digest: str
    """Digest of the adapter, echoed by the worker before it sampled."""
    member_seeds: tuple[int, ...]
    latents: F32
    """`[G, C, h, w]` clean latents x0 in the policy's normalised space."""
    images: U8
    """`[G, 3, H, W]` RGB, what every reward sees."""
    trajectory: TrajectoryRecord | None = None


# rollout worker -> controller, with the group's reference
@dataclass(frozen=True)
class RolloutReceipt:
    """What the controller needs to know about a group without fetching its pixels."""

    ordinal: int
    policy_version: int
    digest: str
    images: int
    sample_s: float


# part of a RewardColumn, where the run has advantages per cell
@dataclass(frozen=True, eq=False)
class RewardMap:
    """One reward's local scores of one group, on the run's grid of cells. Only differences between members count, so
    they have float16's 11 bits for themselves."""

    mean: F32
    """`[h, w]` mean over the group."""
    deviation: F16
    """`[G, h, w]` in -1..1, the difference to the mean in `unit`s of the largest one."""
    unit: float

    @staticmethod
    def of(values: F64) -> "RewardMap":
        """From local scores `[G, h, w]`, finite, higher is better."""
        mean = values.mean(axis=0).astype(np.float32)
        deviation = values - mean
        unit = float(np.abs(deviation).max()) or 1.0
        return RewardMap(mean, (deviation / unit).astype(np.float16), unit)

    @property
    def shape(self) -> tuple[int, int, int]:
        members, rows, columns = self.deviation.shape
        return members, rows, columns

    def values(self) -> F64:
        """`[G, h, w]` in the metric's own unit, to 5e-4 of the largest difference in the group."""
        values: F64 = self.mean.astype(np.float64) + self.unit * self.deviation.astype(np.float64)
        return values


def map_bytes(members: int, rows: int, columns: int) -> int:
    """Of a `RewardMap`."""
    return (2 * members + 4) * rows * columns


# reward server -> controller
@dataclass(frozen=True, eq=False)
class RewardColumn:
    """One reward's scores for one group."""

    ordinal: int
    name: str
    scores: F64
    """`[G]` finite, higher is better, in the metric's own unit (sign flipped where lower is better)."""
    seconds: float
    map: RewardMap | None = None
    """Where the run asks for maps and the reward has one."""


@dataclass(frozen=True, eq=False)
class RewardTable:
    """All scores of one group. A failed score is an exception before it gets here, never a number."""

    ordinal: int
    names: tuple[str, ...]
    scores: F64
    """`[G, R]` finite."""
    seconds: tuple[float, ...]
    maps: tuple[RewardMap | None, ...] = ()
    """One per reward; empty where the run asks for none. Ray maps large ones read-only, without a copy."""

    @staticmethod
    def of(ordinal: int, columns: Sequence[RewardColumn]) -> "RewardTable":
        """From one column per reward."""
        return RewardTable(
            ordinal,
            tuple(column.name for column in columns),
            np.stack([column.scores for column in columns], axis=1),
            tuple(column.seconds for column in columns),
            tuple(column.map for column in columns) if any(column.map is not None for column in columns) else (),
        )

    def __post_init__(self) -> None:
        members = {reward_map.shape[0] for reward_map in self.maps if reward_map is not None}
        if self.maps and (len(self.maps) != len(self.names) or members - {len(self.scores)}):
            shape = f"{len(self.names)} maps of {len(self.scores)} members"
            raise ValueError(f"RewardTable {self.ordinal}: expected {shape}, got {len(self.maps)} of {members}")
        if self.scores.ndim != 2 or self.scores.shape[1] != len(self.names):
            raise ValueError(f"RewardTable: expected scores [G, {len(self.names)}], got {self.scores.shape}")
        if not np.isfinite(self.scores).all():
            bad = [self.names[k] for k in np.flatnonzero(~np.isfinite(self.scores).all(axis=0))]
            raise ValueError(f"RewardTable {self.ordinal}: non-finite scores of {bad}; drop the group instead")


# controller -> learner rank
@dataclass(frozen=True, eq=False)
class TrainGroup:
    """One group with its advantages, as one learner rank trains on it."""

    task: SRTask
    group: RolloutGroup
    advantages: F64
    """`[G]`, or `[G, h, w]` per cell of `advantage.pool` x `advantage.pool` latent cells; unclipped."""


# controller -> learner rank, for objectives that train on pairs (chosen by rl/preferences.py)
@dataclass(frozen=True, eq=False)
class PreferencePairs:
    """P pairs of one group or one mined pool, with their weights."""

    task: SRTask
    group: RolloutGroup
    winners: I64
    """`[P]` preferred members, or `[P, h, w]` the preferred member of each cell."""
    losers: I64
    """The members that the winners are preferred to, likewise."""
    weights: F64
    """`[P]`, at least 0; the loss is the weighted mean over the pairs."""

    def __post_init__(self) -> None:
        shape, members = self.winners.shape, len(self.group.member_seeds)
        fits = shape == self.losers.shape and shape[:1] == self.weights.shape
        if not fits or len(shape) not in (1, 3) or not self.winners.size:
            raise ValueError(
                f"PreferencePairs: expected winners and losers [P >= 1] or [P, h, w] and weights [P], got shapes "
                f"{shape}, {self.losers.shape}, {self.weights.shape}"
            )
        if min(self.winners.min(), self.losers.min()) < 0 or max(self.winners.max(), self.losers.max()) >= members:
            raise ValueError(f"PreferencePairs: expected members 0 to {members - 1}, got {self.winners}, {self.losers}")
        if not (self.weights.min() >= 0 and self.weights.sum() > 0):
            raise ValueError(f"PreferencePairs: expected weights at least 0, not all 0, got {self.weights}")


TrainItem = TrainGroup | PreferencePairs
"""An element of a learner rank's batch."""


# learner -> rollout workers
@dataclass(frozen=True, eq=False)
class LoraSnapshot:
    """The behaviour adapter of one version."""

    version: int
    digest: str
    tensors: dict[str, NDArray[np.generic]]
    """diffusers LoRA names -> arrays; bfloat16 travels as uint16 bits with `dtype` 'bfloat16'."""
    dtype: str


# rollout worker -> controller
@dataclass(frozen=True)
class Echo:
    """Proof that a worker holds a snapshot: the digest is recomputed from the tensors that it will sample with."""

    version: int
    digest: str
    load_s: float
    verify_s: float
    """Time to digest what was loaded."""
    modules: int
    """Layers that the adapter is bound to."""
    effect: float | None
    """Mean absolute difference of one prediction with and without the adapter; None if not requested."""


def image_digest(image: U8) -> str:
    """xxh3-128 over shape and bytes of a uint8 image."""
    state = xxhash.xxh3_128(f"{image.shape}|".encode())
    state.update(np.ascontiguousarray(image).reshape(-1).data)
    return state.hexdigest()


def adapter_digest(tensors: dict[str, NDArray[np.generic]], dtype: str) -> str:
    """xxh3-128 over names, shapes, dtypes and bytes, in name order."""
    state = xxhash.xxh3_128()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        state.update(f"{name}|{array.shape}|{dtype}|".encode())
        state.update(array.view(np.uint8).reshape(-1).data)
    return state.hexdigest()
