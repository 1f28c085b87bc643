"""Which scores a group gets, and how they are served."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rl.config.base import Section


class RewardConfig(Section):
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
    replicas: int = Field(1, ge=1)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the metric runs; a file of `type: python` chooses by itself."""
    batch_groups: int = Field(1, ge=1)
    """Groups of equal size that one call may score as one batch."""
    retries: int = Field(2, ge=0)
    """Attempts after a failed one; then the whole group is dropped and re-issued."""
    deadline_s: float = Field(300.0, gt=0)
    runtime_env: dict[str, object] | None = None
    """Ray `runtime_env` of the server, for rewards whose packages conflict with ours."""

    @model_validator(mode="after")
    def _fields_match_type(self) -> Self:
        if not self.name or "/" in self.name:
            raise ValueError(f"reward name: expected text without '/', because metric keys hold it, got '{self.name}'")
        if self.type == "python" and self.file is None:
            raise ValueError(f"reward '{self.name}': type 'python' needs file: a Python file that defines score()")
        for field, owner in (("metric", "pyiqa"), ("file", "python")):
            if getattr(self, field) is not None and self.type != owner:
                raise ValueError(f"reward '{self.name}': {field} is read only by type '{owner}', got '{self.type}'")
        if self.device == "cuda" and self.gpus == 0:
            raise ValueError(f"reward '{self.name}': device 'cuda' needs gpus above 0, got 0; write gpus: 0.25")
        if self.device == "cpu" and self.gpus > 0 and self.type != "python":
            raise ValueError(
                f"reward '{self.name}': gpus {self.gpus:g} needs device 'cuda', got 'cpu'; write device: cuda"
            )
        return self

    @property
    def metric_name(self) -> str:
        return self.metric or self.name
