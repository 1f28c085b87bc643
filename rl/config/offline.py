"""An offline run: groups come from pools of candidates on disk; nothing is sampled or scored."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from rl.config.base import InputPath, Section
from rl.config.training import TrainingSection


class PoolSection(Section):
    """Pools of mined candidates, in the layout of `rl.data.pools`."""

    path: Annotated[list[str], Field(min_length=1), InputPath()]
    """Folders with a `pool.jsonl`. A single string is accepted."""
    group_size: int = Field(ge=2)
    """G: the first G candidates of each LR image are used; every image needs at least G."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class ScoreSection(Section):
    """One stored score, and how it counts."""

    name: str = Field(min_length=1)
    """Its key in a pool's `scores`; higher is better."""
    weight: float = Field(1.0, gt=0)
    scale: float = Field(1.0, gt=0)
    """The score's natural unit, like `scale` of an online run's rewards."""
    attribute: Literal["fidelity", "perceptual"] | None = None
    """Read by `advantage.aggregation: attribute_aware`."""


class OfflineConfig(TrainingSection):
    """One offline training run."""

    kind: Literal["offline"] = "offline"
    pools: PoolSection
    scores: list[ScoreSection] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.objective.online_only is not None:
            raise ValueError(f"objective '{self.objective.type}' {self.objective.online_only}; use kind: online")
        if self.advantage.spatial != "off":
            raise ValueError("advantage.spatial map: pools hold scores, not maps; remove it")
        self.objective.check(self.policy, self.sampler)
        # whether a pool has HR images is known only once it is read
        self.advantage.check(self.scores, where="scores", has_hr=True)
        self._check_shares()
        self._check_devices({})
        names = [score.name for score in self.scores]
        if len(set(names)) != len(names):
            raise ValueError(f"scores: names must differ, got {names}")
        return self

    def _unread_objective_keys(self) -> dict[str, frozenset[str]]:
        return {
            **super()._unread_objective_keys(),
            "says how groups are sampled, and pools are": self.objective.online_keys,
        }

    @property
    def group_size(self) -> int:
        return self.pools.group_size
