"""The interface of a reward: uint8 images in, one float64 score per image out, higher is better.

Holds the protocol, its input type and the errors of servers. Left out: how scores become advantages
(`rl/advantages.py`), retries and deadlines (`actors/`), and what is refused before a run (`rewards/sections.py`).
Imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.spatial import pooled
from rl.types import F64, U8


@dataclass(frozen=True, eq=False)
class RewardInput:
    """One group as a reward sees it. Arrays may be read-only: a reward must not write into them."""

    images: U8
    """`[G, 3, H, W]` RGB candidates."""
    lr: U8
    """`[3, H/scale, W/scale]` RGB."""
    hr: U8 | None
    """`[3, H, W]` RGB, or None where the source has no ground truth."""
    scale: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the candidates in pixels."""
        return self.images.shape[2], self.images.shape[3]


@dataclass(frozen=True, eq=False)
class Layer:
    """Local values of one group at a reward's own resolution."""

    values: NDArray[np.floating]
    """`[G, h, w]`; the mean over an area is the area's value."""
    inset: float = 0.0
    """Width in pixels of the margin around the image that the values do not cover."""


@dataclass(frozen=True, eq=False)
class LocalScores:
    """A group's scores, and the same metric before its last mean.

        local score of a cell = finish( sum over layers of the layer's mean in the cell )

    With one cell that covers the image this is the score itself, for metrics that end in a mean.
    """

    scores: F64
    """`[G]` finite, in the metric's own unit, higher is better."""
    layers: tuple[Layer, ...]
    finish: Callable[[F64], F64] = lambda means: means
    """What the metric does after its mean, such as -10 log10; the result is higher where the image is better."""

    def in_cells(self, reward: str, size: tuple[int, int], cell_px: int) -> F64:
        """`[G, rows, columns]` local scores of images of `size` pixels.

        Raises:
            RewardError: a layer has the wrong shape, or a value or a local score is not finite.
        """
        for layer in self.layers:
            if layer.values.ndim != 3 or len(layer.values) != len(self.scores) or not layer.values.size:
                raise RewardError(
                    reward, f"expected a map [h, w] per image, {len(self.scores)} in all, got {layer.values.shape}"
                )
            _check_finite(reward, layer.values, "values")  # pooling would spread one over whole rows of cells
        local = self.finish(
            sum((pooled(layer.values, size, cell_px, layer.inset) for layer in self.layers), np.zeros(()))
        )
        _check_finite(reward, local, "local scores")
        return local


class Reward(Protocol):
    """One scorer. A failure is a `RewardError`; no method ever turns it into a number."""

    name: str
    needs_hr: bool

    def score(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
        """Scores `[G]` of images `[G, 3, H, W]`: finite, in the metric's own unit, higher is better."""
        ...

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The same for several groups of equal H and W, as one batch if the reward can; one `[G]` per group."""
        ...


@runtime_checkable
class LocalReward(Reward, Protocol):
    """A reward that also says where: its section's `has_map` is true."""

    def score_locally(self, groups: Sequence[RewardInput]) -> Sequence[LocalScores | F64]:
        """`score_groups` with maps; plain scores `[G]` of a group that has none. Asked only where the run has
        `advantage.spatial: map`."""
        ...


class ServerError(RuntimeError):
    """A model behind a server could not answer. Its fields survive pickling, and thus a Ray call.

    Attributes:
        kind: the kind of server.
        name: the server's name.
        reason: what failed, with values.
        groups: positions in the call of the groups at fault; empty if the whole call failed.
        ordinals: the same groups by ordinal; filled in by the server.
    """

    kind: ClassVar[str] = "server"

    def __init__(self, name: str, reason: str, groups: tuple[int, ...] = (), ordinals: tuple[int, ...] = ()) -> None:
        super().__init__(name, reason, groups, ordinals)
        self.name, self.reason, self.groups, self.ordinals = name, reason, groups, ordinals

    def __str__(self) -> str:
        where = f" (groups {list(self.ordinals)})" if self.ordinals else ""
        return f"{self.kind} '{self.name}'{where}: {self.reason}"


class RewardError(ServerError):
    """A reward could not score."""

    kind = "reward"


class TaggerError(ServerError):
    """A tagger could not tag; `name` is the data section that it tags, `data` or `eval.data`."""

    kind = "tagger"


class naming:
    """Re-raises whatever foreign code (pyiqa, a user's file) raises as `error` with the server's name.

    No list of exception types could be complete here: weights, downloads and model code raise dozens of classes.
    Nothing is swallowed; the original is the `__cause__`. KeyboardInterrupt and SystemExit pass through.
    """

    def __init__(self, name: str, doing: str, error: type[ServerError] = RewardError) -> None:
        self.name, self.doing, self.error = name, doing, error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, ServerError):
            raise self.error(self.name, f"{self.doing}: {type(error).__name__}: {error}") from error


def checked_scores(reward: str, raw: ArrayLike, count: int) -> F64:
    """`raw` as float64 `[count]`; accepts `[count]` and `[count, 1]`.

    Raises:
        RewardError: the number of scores is wrong, or a score is not finite.
    """
    scores = np.asarray(raw, dtype=np.float64)
    if scores.size != count or scores.ndim > 2 or (scores.ndim == 2 and scores.shape != (count, 1)):
        raise RewardError(reward, f"expected {count} scores, one per image, got an array of shape {scores.shape}")
    scores = scores.reshape(count)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        values = ", ".join(f"member {k}: {scores[k]}" for k in bad[:4])
        raise RewardError(reward, f"{bad.size} of {count} scores are not finite ({values})")
    return scores


def _check_finite(reward: str, values: NDArray[np.floating], what: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise RewardError(reward, f"{bad} of {values.size} {what} of its map are not finite")


Answer = TypeVar("Answer")


def score_each(score: Callable[[U8, U8, U8 | None, int], Answer], groups: Sequence[RewardInput]) -> list[Answer]:
    """`score_groups` or `score_locally` for a reward that gains nothing from batching: group by group, naming the one
    that failed."""
    columns = []
    for k, group in enumerate(groups):
        try:
            columns.append(score(group.images, group.lr, group.hr, group.scale))
        except RewardError as error:
            raise RewardError(error.name, error.reason, groups=(k,)) from error
    return columns
