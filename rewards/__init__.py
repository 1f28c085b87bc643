"""Rewards and taggers: images in, scores or texts out. Torch-free until something is built.

A reward consists of a section with its recipe keys (`rewards/sections.py`, registered in `rl.config.reward.REWARDS`)
and the class that the section's `builder` names.
"""

from rewards.base import Reward, RewardError, RewardInput, naming
from rewards.weights import check_weights, weights_texts
from rl.config.open_union import load
from rl.config.reward import RewardSection
from rl.config.tagger import TaggerSection

__all__ = [
    "Reward", "RewardError", "RewardInput", "build_reward", "check_reward", "check_tagger", "check_weights",
    "weights_texts",
]  # fmt: skip


def build_reward(section: RewardSection) -> Reward:
    """The reward that `section` describes.

    Raises:
        RewardError: it could not be built: weights, network, a package, the user's file.
    """
    with naming(section.name, f"building {section.builder}"):
        reward: Reward = load(section.builder)(section)
        return reward


def check_reward(section: RewardSection, *, has_hr: bool, sr_side: int | None) -> None:
    """Refuses a reward that cannot work with the run's data; see `RewardSection.check`.

    Raises:
        ValueError: names the reward, what it needs, what it gets, and what to write instead.
    """
    try:
        section.check(has_hr=has_hr, sr_side=sr_side)
    except ValueError as error:
        raise ValueError(f"{section.label}: {error}") from error


def check_tagger(where: str, section: TaggerSection) -> None:
    """Refuses a tagger with files that are missing or are not what they should be.

    Args:
        where: the data section, with which the message starts.

    Raises:
        ValueError: names the section, what was expected and what was found.
    """
    try:
        section.check()
    except ValueError as error:
        raise ValueError(f"{where}.tagger: {error}") from error
