"""The interface of a reward: uint8 images in, one float64 score per image out, higher is better.

Holds the protocol, its input type and the errors of servers. Left out: how scores become advantages
(`rl/advantages.py`), retries and deadlines (`actors/`), and what is refused before a run (`rewards/sections.py`).
Imports no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

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


def score_each(score: Callable[[U8, U8, U8 | None, int], F64], groups: Sequence[RewardInput]) -> list[F64]:
    """`score_groups` for a reward that gains nothing from batching: group by group, naming the one that failed."""
    columns = []
    for k, group in enumerate(groups):
        try:
            columns.append(score(group.images, group.lr, group.hr, group.scale))
        except RewardError as error:
            raise RewardError(error.name, error.reason, groups=(k,)) from error
    return columns
