"""An online run: its sections, with combinations that cannot work refused."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rl.config.base import Section
from rl.config.data import AnyData
from rl.config.fleet import FleetSection
from rl.config.reward import AnyReward
from rl.config.rollout import AnySampler, RolloutSection, SamplerSection
from rl.config.tagger import TaggerSection
from rl.config.training import TrainingSection, TrainSection, default_sampler

SCHEMA_VERSION = 2
MOVED = (
    "kind: online is new at the root; rollout.sampler.shift is policy.shift; rollout.sampler.sde is read by solver sde "
    "alone; rollout.sampler.sde.one_step_std is rollout.sampler={solver: gaussian, std: ...}; rollout.vary and "
    "rollout.t_add_range are rollout.sampler={solver: one_step, t_add_range: ...}; data.hr_path belongs to kind "
    "paired, data.degradation to kind hr"
)
"""Keys that moved since schema version 1."""


class OnlineTrainSection(TrainSection):
    """The loop of a run that samples its own groups."""

    max_policy_lag: int = Field(1, ge=0)
    """0: sampling waits for the newest adapter. n >= 1: groups of step s may come from version s - n or newer, so that
    sampling, scoring and training overlap."""


class EvalSection(Section):
    """Held-out photographs, restored by the EMA policy before, during and after training with the same seeds."""

    data: AnyData
    crops: int = Field(64, ge=1)
    samples: int = Field(1, ge=1)
    """Samples per crop."""
    every: int = Field(0, ge=0)
    """Steps between evaluations during the run; 0: only before and after."""
    sampler: AnySampler | None = None
    """If unset, that of `rollout` or its deterministic counterpart."""


class RunConfig(TrainingSection):
    """One online training run, which samples, scores and trains on its groups."""

    kind: Literal["online"] = "online"
    train: OnlineTrainSection = OnlineTrainSection()
    data: AnyData
    rollout: RolloutSection = RolloutSection()
    rewards: list[AnyReward] = Field(min_length=1)
    eval: EvalSection | None = None
    """None: no evaluation."""
    fleet: FleetSection = FleetSection()
    schema_version: Literal[2] = 2

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version: expected {SCHEMA_VERSION}, got {raw['schema_version']}; this file was written by "
                f"another version of isrl. Since version 1: {MOVED}. Change these keys and write schema_version: "
                f"{SCHEMA_VERSION}, or start from a recipe in configs/"
            )
        return raw

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self._check_samplers()
        self.objective.check(self.policy, self.sampler)
        self._check_size()
        self.advantage.check(self.rewards, where="rewards", has_hr=self.data.has_hr)
        self._check_maps()
        self._check_shares()
        self._check_micro_batch()
        self._check_devices({"rollout.gpus_per_worker": self.rollout.gpus_per_worker})
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(
                f"rewards: names must differ, got {names}; give each its own `name`, and say the metric in `metric`"
            )
        return self

    def _check_samplers(self) -> None:
        for where, sampler in (("rollout.sampler", self.sampler), ("eval.sampler", self.eval_sampler)):
            if sampler.solver not in self.policy.solvers:
                raise ValueError(
                    f"{where}.solver must be one of {list(self.policy.solvers)} for policy '{self.policy.type}', got "
                    f"'{sampler.solver}'"
                )
        if self.eval_sampler.likelihood:
            raise ValueError(
                f"eval.sampler.solver '{self.eval_sampler.solver}' is for training alone; write eval.sampler.solver="
                f"{self.eval_sampler.deterministic.solver}"
            )
        if self.sampler.likelihood and not self.objective.likelihood:
            raise ValueError(
                f"rollout.sampler.solver '{self.sampler.solver}' is read only by objectives that need a likelihood, "
                f"got '{self.objective.type}'; write rollout.sampler.solver={self.policy.solvers[0]}"
            )
        if getattr(self.sampler, "t_add_range", None) is not None and not self.objective.varied_levels:
            raise ValueError(
                f"rollout.sampler.t_add_range makes groups by t_add, which objective '{self.objective.type}' cannot "
                "train; write objective.type=gdpo, or remove it"
            )

    def _check_size(self) -> None:
        multiple = self.policy.size_multiple
        for where, data in (("data", self.data), ("eval.data", self.eval.data if self.eval else None)):
            if data is not None and data.crop % multiple:
                low = data.crop // multiple * multiple
                raise ValueError(
                    f"{where}.crop must be divisible by {multiple} for policy '{self.policy.type}', got {data.crop}; "
                    f"write {low or multiple} or {low + multiple}"
                )
            if data is not None and data.scale != self.data.scale:
                raise ValueError(f"{where}.scale must equal data.scale {self.data.scale}, got {data.scale}")

    def _check_maps(self) -> None:
        if self.advantage.spatial == "off":
            unread = [reward.name for reward in self.rewards if not reward.map]
            if unread:
                raise ValueError(f"rewards {unread}: map is read only with advantage.spatial: map; remove it")
        elif all(reward.has_map is False or not reward.map for reward in self.rewards):
            names = [reward.name for reward in self.rewards]
            raise ValueError(
                "advantage.spatial map needs a reward with a map (lr_consistency, sharpness, psnr_y, ssim_y, gmsd, "
                f"lpips), got {names} without; add one, or write advantage.spatial=off"
            )
        elif not hasattr(self.policy, "cell_px"):
            raise ValueError(
                f"advantage.spatial map needs cell_px, the output pixels of a latent position, which the section of "
                f"policy '{self.policy.type}' does not declare; add it there, or write advantage.spatial=off"
            )

    def _check_micro_batch(self) -> None:
        if self.objective.likelihood and self.learner.micro_batch not in (None, self.sampled_at_once):
            raise ValueError(
                f"learner.micro_batch must equal rollout.micro_batch ({self.sampled_at_once} members) for objective "
                f"'{self.objective.type}', got {self.learner.micro_batch}: a likelihood is repeated as it was sampled"
            )

    @property
    def sampler(self) -> SamplerSection:
        return self.rollout.sampler or default_sampler(self.policy.solvers[0])

    @property
    def eval_sampler(self) -> SamplerSection:
        return (self.eval.sampler if self.eval else None) or self.sampler.deterministic

    @property
    def map_cell_px(self) -> int | None:
        """Side in output pixels of the cells of reward maps and advantages; None without maps."""
        return None if self.advantage.spatial == "off" else self.advantage.pool * self.policy.cell_px

    @property
    def group_size(self) -> int:
        return self.rollout.group_size

    @property
    def sampled_at_once(self) -> int:
        return self.rollout.micro_batch or self.rollout.group_size

    @property
    def max_policy_lag(self) -> int:
        return self.train.max_policy_lag

    @property
    def measured(self) -> tuple[str, ...]:
        return tuple(reward.name for reward in self.rewards) if self.eval is not None and self.eval.every else ()

    @property
    def taggers(self) -> dict[str, TaggerSection]:
        """Section -> tagger to start processes for. An evaluation tagger that differs from training's only in `image`
        uses the processes of `data`."""
        ours, held_out = self.data.tagger, self.eval.data.tagger if self.eval else None
        found = {} if ours is None else {"data": ours}
        if held_out is not None and (ours is None or held_out.model_copy(update={"image": ours.image}) != ours):
            found["eval.data"] = held_out
        return found

    @property
    def total_cpus(self) -> float:
        rewards = sum(reward.cpus * reward.replicas for reward in self.rewards)
        taggers = sum(tagger.cpus * tagger.replicas for tagger in self.taggers.values())
        rollout = self.rollout.workers * self.rollout.cpus_per_worker
        return rewards + taggers + rollout + super().total_cpus
