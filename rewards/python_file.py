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

from rewards.base import RewardError, RewardInput, ServerError, checked_scores, naming, score_each
from rewards.checks import SCORE_ARGUMENTS, signature
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
        module = user_module(config.file, "score", SCORE_ARGUMENTS, self.name, RewardError)
        self._path = module.__file__
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
            raw = self._score(read_only(images), read_only(lr), None if hr is None else read_only(hr), scale)
            return checked_scores(self.name, raw, len(images))

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The scores of each group, one after the other."""
        return score_each(self.score, groups)


def user_module(file: str | None, function: str, arguments: Sequence[str], name: str, error: type[ServerError]) -> Any:
    """The imported module of a user's file, which has a callable `function`.

    Raises:
        error: under `name`: the file is missing, fails on import, or has no such function.
    """
    path = Path(file or "").expanduser().resolve()
    if not path.is_file():
        raise error(name, f"file {path} does not exist")
    key = f"isrl_{error.kind}_{name.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise error(name, f"{path}: expected a Python file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look their module up there
    with naming(name, f"importing {path}", error):
        spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise error(name, f"{path} has no {function}(); expected `{signature(function, arguments)}`")
    return module


def read_only(array: U8) -> U8:
    """A view that a user's file cannot write through."""
    view = array.view()
    view.flags.writeable = False
    return view
