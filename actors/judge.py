"""The rewards used in training, here in this process, for candidates of one image without ground truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rewards import RewardError, build_reward, check_reward, check_weights
from rl.config.load import validate
from rl.config.reward import REWARD_UNION, REWARDS, RewardSection
from rl.errors import InputError, RunFailed
from rl.types import F64, U8


class Judge:
    """Scores candidates by named rewards: a pyiqa metric, a type (or package.module:Class), or a Python file.

    Args:
        sides: all side lengths of the restored images, in pixels.

    Raises:
        InputError: a name is not a reward, a reward needs the HR image or cannot score a side length, or its weights
            are not on this machine and cannot be downloaded.
    """

    def __init__(self, names: Sequence[str], sides: Sequence[int], device: str) -> None:
        self._sections = [_section(name, device) for name in dict.fromkeys(names)]
        self.names = tuple(section.name for section in self._sections)
        if len(set(self.names)) < len(self.names):
            raise InputError(f"--reward: names must differ, got {', '.join(self.names)}; rename a file")
        for section in self._sections:
            for side in sorted(set(sides)):
                try:
                    check_reward(section, has_hr=False, sr_side=side)
                except ValueError as error:
                    raise InputError(f"--reward: {error}") from error
        check_weights(self._sections)

    def load(self) -> None:
        """Build the rewards.

        Raises:
            RunFailed: one could not be built; its `__cause__` says why.
        """
        try:
            self._rewards = [build_reward(section) for section in self._sections]
        except RewardError as error:
            raise RunFailed(str(error)) from error

    def scores(self, images: U8, lr: U8, scale: int) -> F64:
        """`[N, R]`, higher is better, for candidates `[N, 3, H, W]` of the LR image `[3, h, w]`."""
        try:
            columns = [reward.score(images, lr, None, scale) for reward in self._rewards]
        except RewardError as error:
            raise RunFailed(str(error)) from error
        return np.stack(columns, axis=1)


def _section(name: str, device: str) -> RewardSection:
    """The section for a reward's name; the only place that interprets names."""
    raw: dict[str, object] = {"name": name, "type": name if name in REWARDS or ":" in name else "pyiqa"}
    if name.endswith(".py"):
        raw = {"name": Path(name).stem, "type": "python", "file": name}
    elif device == "cuda":
        raw |= {"device": device, "gpus": 1}
    try:
        member = REWARD_UNION.member(raw["type"])
    except ValueError as error:
        raise InputError(f"--reward: {error}") from error
    section = validate(member, raw, f"--reward {name}")
    assert isinstance(section, RewardSection)
    return section
