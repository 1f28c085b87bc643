"""Which scores a group gets, and how they are served."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rl.config.server import ServerSection


class RewardConfig(ServerSection):
    """One reward: a pyiqa metric by name, `lr_consistency`, or a user's Python file."""

    name: str
    """The column of the reward table and the metric key `reward/<name>/...`."""
    type: Literal["pyiqa", "lr_consistency", "python"]
    metric: str | None = None
    """pyiqa's metric name; the default is `name`. Read only by `type: pyiqa`."""
    file: str | None = None
    """A Python file that defines `score(images, lr, hr, scale) -> [G]`. Read only by `type: python`."""
    weight: float = Field(1.0, gt=0)
    scale: float = Field(1.0, gt=0)
    """The reward's natural unit, by which raw scores are divided in logs and against the advantage's std floor."""
    attribute: Literal["fidelity", "perceptual"] | None = None
    """Which set of `advantage.aggregation: attribute_aware` it belongs to; the others do not read it."""
    options: dict[str, float | int | str | bool] = {}
    """Passed to the metric's constructor."""
    batch_groups: int = Field(1, ge=1)
    """Groups of equal size that one call may score as one batch."""

    @property
    def label(self) -> str:
        return f"reward '{self.name}'"

    @model_validator(mode="after")
    def _fields_match_type(self) -> Self:
        if not self.name or "/" in self.name:
            raise ValueError(f"reward name: expected text without '/', because metric keys hold it, got '{self.name}'")
        if self.type == "python" and self.file is None:
            raise ValueError(f"{self.label}: type 'python' needs file: a Python file that defines score()")
        for field, owner in (("metric", "pyiqa"), ("file", "python")):
            if getattr(self, field) is not None and self.type != owner:
                raise ValueError(f"{self.label}: {field} is read only by type '{owner}', got '{self.type}'")
        return self

    @property
    def metric_name(self) -> str:
        return self.metric or self.name
