"""A user's own reward: one Python file that defines `score(images, lr, hr, scale)`.

    import numpy as np

    NEEDS_HR = False                          # optional; True refuses data without HR before the run starts

    def score(images, lr, hr, scale):         # uint8 [G, 3, H, W], [3, h, w], [3, H, W] or None, int
        return -np.abs(np.diff(images.astype(float), axis=-1)).mean(axis=(1, 2, 3))     # [G], higher is better

Arrays are read-only (`torch.from_numpy` warns about that; use `torch.tensor`). The file runs with the rights of the
run. Left out: options (write constants into the file), and imports of neighbouring files, which need PYTHONPATH.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.base import RewardError, RewardInput, checked_scores, naming, score_each
from rl.config.reward import RewardConfig
from rl.types import F64, U8


class PythonFileReward:
    """The `score()` of a user's file, its result checked for shape and finiteness.

    Args:
        config: `file` is read.

    Raises:
        RewardError: the file is missing, fails on import, or has no callable `score`.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.name = config.name
        self._path = Path(config.file or "").expanduser().resolve()
        module = self._load()
        if not callable(getattr(module, "score", None)):
            raise RewardError(self.name, f"{self._path} has no score(); expected `def score(images, lr, hr, scale)`")
        self._score: Callable[[U8, U8, U8 | None, int], Any] = module.score
        self.needs_hr = bool(getattr(module, "NEEDS_HR", False))

    def score(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
        """What the file's `score()` returned, as float64 `[G]`.

        Raises:
            RewardError: it raised, returned another shape, or a score is not finite.
        """
        if self.needs_hr and hr is None:
            raise RewardError(self.name, f"{self._path} says NEEDS_HR = True, got hr=None")
        with naming(self.name, f"score() of {self._path}"):
            raw = self._score(_read_only(images), _read_only(lr), None if hr is None else _read_only(hr), scale)
            return checked_scores(self.name, raw, len(images))

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The scores of each group, one after the other."""
        return score_each(self.score, groups)

    def _load(self) -> Any:
        if not self._path.is_file():
            raise RewardError(self.name, f"file {self._path} does not exist")
        key = f"isrl_reward_{self.name}"
        spec = importlib.util.spec_from_file_location(key, self._path)
        if spec is None or spec.loader is None:
            raise RewardError(self.name, f"{self._path}: expected a Python file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module  # dataclasses and pickle look their module up there
        with naming(self.name, f"importing {self._path}"):
            spec.loader.exec_module(module)
        return module


def _read_only(array: U8) -> U8:
    view = array.view()
    view.flags.writeable = False
    return view
