"""isrl's own reward sections: the keys that each type reads, and what can be refused before a process starts.

A reward is one section here and the class that `builder` names. Imports no torch. Left out: whether there is a GPU,
which only building the reward shows.
"""

import ast
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from rewards.iqa.catalog import check_options, has_map, metric_facts
from rewards.iqa.weights import OWN_FILE, weight_files
from rewards.user_file import check_user_file
from rl.config.base import InputPath
from rl.config.reward import RewardSection, WeightFile
from rl.config.server import DeviceSection

SCORE_ARGUMENTS = ("images", "lr", "hr", "scale")


class PyiqaSection(DeviceSection, RewardSection):
    """A pyiqa metric; its sign is flipped where lower is better.

    `psnr_y` and `ssim_y` are what super-resolution papers report, on Y of BT.601 YCbCr in studio range,

        Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255,    R, G, B in [0, 1].

    pyiqa's own `psnry` and `ssim` keep their meaning and use YIQ's full-range luma instead. That gives 1.32 dB less,
    20 log10(255 / 219), and 0.015 to 0.048 less SSIM on OSEDiff's published DRealSR images.
    """

    builder = "rewards.iqa.reward:IqaReward"

    type: Literal["pyiqa"] = "pyiqa"
    metric: str | None = None
    """The metric's name; the default is `name`."""
    options: dict[str, float | int | str | bool] = {}
    """Arguments for pyiqa's metric, overriding its defaults; `pretrained_model_path` names a local weights file."""

    @property
    def label(self) -> str:
        metric = self.metric_name
        return f"reward '{self.name}'" if metric == self.name else f"reward '{self.name}' (metric '{metric}')"

    @property
    def metric_name(self) -> str:
        return self.metric or self.name

    @property
    def has_map(self) -> bool:
        return has_map(metric_facts(self.metric_name), self.options)

    def absolute(self, root: Path) -> Self:
        joined = super().absolute(root)
        own = self.options.get(OWN_FILE)
        if not isinstance(own, str):
            return joined
        return joined.model_copy(
            update={"options": {**self.options, OWN_FILE: InputPath(may_be_name=True).joined(own, root)}}
        )

    def check(self, *, has_hr: bool, sr_side: int | None) -> None:
        facts = metric_facts(self.metric_name)
        check_options(facts, self.options)
        if facts.full_reference and not has_hr:
            raise ValueError(
                f"'{facts.name}' compares with the HR image, but the data source has none; "
                "use a no-reference metric (musiq, clipiqa+, ...), 'lr_consistency', or data with HR"
            )
        if sr_side is not None and sr_side < facts.min_side:
            raise ValueError(
                f"'{facts.name}' needs sides of at least {facts.min_side} pixels ({facts.why_min_side}), "
                f"got {sr_side}; use larger images or another metric"
            )
        if sr_side is not None and sr_side % facts.side_multiple:
            low = sr_side - sr_side % facts.side_multiple
            raise ValueError(
                f"'{facts.name}' needs sides that are multiples of {facts.side_multiple}, got {sr_side}; "
                f"use {low or facts.side_multiple} or {low + facts.side_multiple}"
            )

    def weights(self) -> tuple[WeightFile, ...] | None:
        return weight_files(metric_facts(self.metric_name), self.options)


class LrConsistencySection(DeviceSection, RewardSection):
    """PSNR in dB between the candidate, downscaled to LR size, and the LR image (`rewards/lr_consistency.py`)."""

    builder = "rewards.lr_consistency:LrConsistency"

    type: Literal["lr_consistency"] = "lr_consistency"
    cap_db: float = Field(60.0, gt=0)
    """The score of a perfect match."""

    @property
    def has_map(self) -> bool:
        return True


class LocalStatisticSection(RewardSection):
    """What `sharpness` and `noise` share."""

    @property
    def has_map(self) -> bool:
        return True

    def check(self, *, has_hr: bool, sr_side: int | None) -> None:
        if sr_side is not None and sr_side < 3:
            raise ValueError(f"its mask needs sides of at least 3 pixels, got {sr_side}; use larger images")


class SharpnessSection(LocalStatisticSection):
    """Root mean square of the Sobel gradient, in grey levels per pixel (`rewards/local_statistics.py`); noise raises it
    too."""

    builder: ClassVar[str] = "rewards.local_statistics:Sharpness"

    type: Literal["sharpness"] = "sharpness"


class NoiseSection(LocalStatisticSection):
    """Minus the estimated standard deviation of noise, in grey levels (`rewards/local_statistics.py`); fine texture
    counts as noise."""

    builder: ClassVar[str] = "rewards.local_statistics:Noise"

    type: Literal["noise"] = "noise"


class PythonRewardSection(RewardSection):
    """The `score(images, lr, hr, scale)` of a user's Python file (`rewards/python_file.py`)."""

    builder: ClassVar[str] = "rewards.python_file:PythonFileReward"

    type: Literal["python"] = "python"
    file: Annotated[str, InputPath()]

    @property
    def has_map(self) -> None:
        return None

    def check(self, *, has_hr: bool, sr_side: int | None) -> None:
        path = Path(self.file).expanduser()
        tree = check_user_file(path, "score", SCORE_ARGUMENTS)
        if not has_hr and _needs_hr(tree):
            raise ValueError(f"{path} says NEEDS_HR = True, but the data source has no HR; use data with HR")

    def weights(self) -> tuple[WeightFile, ...] | None:
        return None


def _needs_hr(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "NEEDS_HR" in names:
                return bool(node.value.value)
    return False
