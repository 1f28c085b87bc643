"""Rewards: images in, scores out. The registry; each builder imports its own dependencies, so this stays torch-free.

A new reward type is one file with a class that fits `rewards.base.Reward`, one entry here, one branch in
`rewards/checks.py`, and one name in `rl.config.reward.RewardConfig.type`.
"""

from collections.abc import Callable

from rewards.base import Reward, RewardError, RewardInput
from rewards.checks import check_reward, check_tagger
from rl.config.reward import RewardConfig

__all__ = ["BUILDERS", "Reward", "RewardError", "RewardInput", "build_reward", "check_reward", "check_tagger"]


def _pyiqa(config: RewardConfig) -> Reward:
    from rewards.iqa import IqaReward

    return IqaReward(config)


def _lr_consistency(config: RewardConfig) -> Reward:
    from rewards.faithfulness import LrConsistency

    return LrConsistency(config)


def _python(config: RewardConfig) -> Reward:
    from rewards.python_file import PythonFileReward

    return PythonFileReward(config)


BUILDERS: dict[str, Callable[[RewardConfig], Reward]] = {
    "pyiqa": _pyiqa,
    "lr_consistency": _lr_consistency,
    "python": _python,
}


def build_reward(config: RewardConfig) -> Reward:
    """The reward that `config` describes.

    Raises:
        ValueError: the config names something that does not exist (`check_reward` says so earlier).
        RewardError: it exists but could not be built: weights, network, a package, the user's file.
    """
    return BUILDERS[config.type](config)
