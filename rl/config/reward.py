"""The base of all reward sections, and their registry; isrl's own sections are in `rewards/sections.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rl.config.open_union import OpenUnion
from rl.config.server import ServerSection


@dataclass(frozen=True)
class WeightFile:
    """A file or folder that a reward loads, and downloads if it is not on disk."""

    name: str
    url: str
    """Empty if it is never downloaded."""
    path: Path
    """Where it is looked for, and where a download puts it."""
    found: bool
    option: str = ""
    """The option that names a local file instead; empty if there is none."""


class RewardSection(ServerSection):
    """One column of the reward table.

    Your own reward extends this class and sets `builder` to a class that implements `rewards.base.Reward`, built from
    this section; a recipe selects it by `type: package.module:Class`. Every process of a run imports the section's
    module, so keep model code out of it; only replicas import the builder's module.
    """

    name: str
    """The column of the reward table and the metric key `reward/<name>/...`."""
    weight: float = Field(1.0, gt=0)
    scale: float = Field(1.0, gt=0)
    """The reward's natural unit: raw scores are divided by it in logs and for the advantage's std floor."""
    attribute: Literal["fidelity", "perceptual"] | None = None
    """Which set of `advantage.aggregation: attribute_aware` it belongs to; other aggregations do not read it."""
    map: bool = True
    """With `advantage.spatial: map`, use its map where it has one; false: its score in every cell."""
    batch_groups: int = Field(1, ge=1)
    """Groups of equal size that one call may score as one batch."""

    @property
    def label(self) -> str:
        return f"reward '{self.name}'"

    @property
    def has_map(self) -> bool | None:
        """Whether its builder is a `rewards.base.LocalReward`; None where only the run shows it."""
        return False

    @model_validator(mode="after")
    def _name_fits_metric_keys(self) -> Self:
        if not self.name or "/" in self.name:
            raise ValueError(f"reward name: expected text without '/', because metric keys hold it, got '{self.name}'")
        return self

    def check(self, *, has_hr: bool, sr_side: int | None) -> None:
        """Raise ValueError for what cannot work with the run's data. Torch-free, in milliseconds.

        Args:
            has_hr: every LR image of the run comes with ground truth.
            sr_side: shorter side of the super-resolved images in pixels; None where sizes vary.
        """

    def weights(self) -> tuple[WeightFile, ...] | None:
        """The files it loads, on disk or not; None where unknown. Torch-free, in milliseconds."""
        return ()


REWARDS: dict[str, str] = {
    "pyiqa": "rewards.sections:PyiqaSection",
    "lr_consistency": "rewards.sections:LrConsistencySection",
    "sharpness": "rewards.sections:SharpnessSection",
    "noise": "rewards.sections:NoiseSection",
    "python": "rewards.sections:PythonRewardSection",
}
REWARD_UNION = OpenUnion(REWARDS, base=RewardSection)
AnyReward = Annotated[RewardSection, REWARD_UNION]
"""An element of a recipe's `rewards`."""
