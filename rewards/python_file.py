"""A user's own reward: one Python file that defines `score(images, lr, hr, scale)`.

    import numpy as np

    NEEDS_HR = False                          # optional; True refuses data without HR before the run starts

    def score(images, lr, hr, scale):         # uint8 [G, 3, H, W], [3, h, w], [3, H, W] or None, int
        return -np.abs(np.diff(images.astype(float), axis=-1)).mean(axis=(1, 2, 3))     # [G], higher is better

With `advantage.spatial: map` it may also say where: `return scores, maps`, maps `[G, h, w]` at any resolution, higher
is better; a cell gets the mean of its part of the map. Elsewhere the maps are ignored.

Arrays are read-only (`torch.from_numpy` warns about this; use `torch.tensor`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewards.base import Layer, LocalScores, RewardError, RewardInput, checked_scores, naming, score_each
from rewards.sections import SCORE_ARGUMENTS, PythonRewardSection
from rewards.user_file import read_only, user_module
from rl.types import F64, U8


class PythonFileReward:
    """The `score()` of a user's file, with its result checked for shape and finiteness.

    Args:
        section: `file` is read.

    Raises:
        RewardError: the file is missing, fails on import, or has no callable `score`.
    """

    def __init__(self, section: PythonRewardSection) -> None:
        self.name = section.name
        module = user_module(section.file, "score", SCORE_ARGUMENTS, self.name, RewardError)
        self._path = module.__file__
        self._score: Callable[[U8, U8, U8 | None, int], Any] = module.score
        self.needs_hr = bool(getattr(module, "NEEDS_HR", False))

    def score(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
        """What the file's `score()` returned, as float64 `[G]`.

        Raises:
            RewardError: it raised, returned another shape, or a score is not finite.
        """
        return self._answer(images, lr, hr, scale)[0]

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The scores of each group, one by one."""
        return score_each(self.score, groups)

    def score_locally(self, groups: Sequence[RewardInput]) -> Sequence[LocalScores | F64]:
        """The same with the maps of a file that returns some."""
        return score_each(self._local, groups)

    def _local(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> LocalScores | F64:
        scores, maps = self._answer(images, lr, hr, scale)
        return scores if maps is None else LocalScores(scores, (Layer(maps),))

    def _answer(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> tuple[F64, F64 | None]:
        if self.needs_hr and hr is None:
            raise RewardError(self.name, f"{self._path} says NEEDS_HR = True, got hr=None")
        with naming(self.name, f"score() of {self._path}"):
            raw = self._score(read_only(images), read_only(lr), None if hr is None else read_only(hr), scale)
            maps = None
            if isinstance(raw, tuple) and len(raw) == 2 and np.ndim(raw[0]) > 0:
                raw, maps = raw[0], np.asarray(raw[1], dtype=np.float64)
            return checked_scores(self.name, raw, len(images)), maps
