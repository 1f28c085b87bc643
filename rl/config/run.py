"""The whole run: sections put together, and the combinations that cannot work refused by name."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rl.config.base import Section
from rl.config.data import DataConfig
from rl.config.monitor import MonitorConfig
from rl.config.objective import (
    AdvantageConfig,
    DiffusionDPOConfig,
    GDPOConfig,
    GRPOConfig,
    LearnerConfig,
    NFTConfig,
    ObjectiveConfig,
)
from rl.config.policy import PolicyConfig, RolloutConfig
from rl.config.reward import RewardConfig
from rl.config.tagger import TaggerConfig

ONE_STEP_POLICIES = frozenset({"naosd"})
SIZE_MULTIPLES: dict[str, int] = {"flux2sr": 16, "naosd": 8}


class RunSection(Section):
    """Where a run writes."""

    dir: str = "runs/isrl"
    """config.yaml, metrics.jsonl, eval.jsonl, checkpoints/, samples/, lora/ and report.md go here."""
    name: str = "isrl"


class TrainSection(Section):
    """The loop: each step trains on `groups_per_step` groups and publishes one new adapter version."""

    steps: int = Field(100, ge=1)
    groups_per_step: int = Field(4, ge=1)
    max_policy_lag: int = Field(1, ge=0)
    """0: sampling waits for the newest adapter. n >= 1: groups of step s may come from version s - n on, so that
    sampling, scoring and training overlap."""


class CheckpointSection(Section):
    """Plain checkpoints; `isrl train ... --resume` continues from the newest."""

    every: int = Field(50, ge=1)
    keep: int = Field(2, ge=1)


class EvalSection(Section):
    """Held-out photographs, restored by the EMA policy before, during and after training with the same seeds."""

    data: DataConfig | None = None
    """None: no evaluation."""
    crops: int = Field(64, ge=1)
    samples: int = Field(1, ge=1)
    """Samples per crop."""
    every: int = Field(0, ge=0)
    """Steps between evaluations in the middle of the run; 0: only before and after."""


class RayConfig(Section):
    """Where the actors run."""

    address: str | None = None
    """None starts Ray on this machine; `auto` or `ray://host:port` joins a cluster."""
    num_cpus: int | None = None
    """Logical CPUs of a local Ray; None counts what the roles ask for, so that a laptop never waits for itself."""
    object_store_mb: int = Field(512, ge=80)


class RunConfig(Section):
    """One training run."""

    seed: int = Field(0, ge=0)
    run: RunSection = RunSection()
    train: TrainSection = TrainSection()
    data: DataConfig
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: list[RewardConfig] = Field(min_length=1)
    advantage: AdvantageConfig = AdvantageConfig()
    objective: ObjectiveConfig = NFTConfig()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection = EvalSection()
    monitor: MonitorConfig = MonitorConfig()
    ray: RayConfig = RayConfig()
    schema_version: Literal[1] = 1

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self._check_group()
        self._check_objective()
        self._check_attributes()
        self._check_size()
        self._check_learner()
        self._check_devices()
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(f"rewards: names must differ, got {names}; set `name` and `metric` apart")
        return self

    def _check_group(self) -> None:
        if self.rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size must be at least 2, got {self.rollout.group_size}: a group of one has no "
                "relative advantage (LucidNFT uses 12)"
            )

    def _check_objective(self) -> None:
        objective, one_step = self.objective, self.policy.type in ONE_STEP_POLICIES
        if isinstance(objective, NFTConfig) and one_step and not objective.allow_one_step:
            raise ValueError(
                f"objective 'nft' needs a multi-step generator, got policy '{self.policy.type}' (DiffusionNFT's "
                "authors: unsupported); use objective gdpo, or set objective.allow_one_step: true"
            )
        if isinstance(objective, GDPOConfig | DiffusionDPOConfig) and not one_step:
            raise ValueError(
                f"objective '{objective.type}' needs a one-step generator, got policy '{self.policy.type}'; write "
                "objective.type=nft, or policy.type=naosd"
            )
        std = self.rollout.sampler.sde.one_step_std
        if isinstance(objective, GRPOConfig) and one_step and std is None:
            raise ValueError(
                f"objective 'grpo' needs a multi-step generator, got policy '{self.policy.type}': one step has no "
                "trajectory to take a likelihood of; write objective.type=gdpo, or force a Gaussian around its latents "
                "with rollout.sampler.sde.one_step_std=0.1"
            )
        if std is not None and not one_step:
            raise ValueError(
                f"rollout.sampler.sde.one_step_std is for one-step policies, got policy '{self.policy.type}': remove it"
            )
        if self.rollout.vary == "t_add" and not (one_step and isinstance(objective, GDPOConfig | DiffusionDPOConfig)):
            raise ValueError(
                "rollout.vary 't_add' needs a one-step policy and objective gdpo or diffusion_dpo, got policy "
                f"'{self.policy.type}' and '{objective.type}'; write rollout.vary=noise"
            )
        self._check_sde()

    def _check_sde(self) -> None:
        objective, sampler = self.objective, self.rollout.sampler
        if not isinstance(objective, GRPOConfig):
            if sampler.solver == "sde":
                raise ValueError(
                    f"rollout.sampler.solver 'sde' is read only by objective 'grpo', got '{objective.type}'; write "
                    "rollout.sampler.solver=dpm2"
                )
            return
        if sampler.solver != "sde":
            raise ValueError(
                f"objective 'grpo' needs a stochastic sampler, got rollout.sampler.solver '{sampler.solver}': an ODE "
                "has no likelihood; write rollout.sampler.solver=sde"
            )
        if objective.guard and sampler.sde.step == "cps":
            raise ValueError(
                "objective.guard needs a step with a density, got rollout.sampler.sde.step 'cps'; write "
                "rollout.sampler.sde.step=flow_sde"
            )
        if sampler.sde.one_step_std is not None:
            return
        span = sampler.steps // 2 if sampler.sde.window == "random" else sampler.steps - 1
        if not 1 <= self.micro_batches_per_group <= span:
            raise ValueError(
                f"rollout.sampler.sde.window '{sampler.sde.window}' must train 1 to {span} of {sampler.steps} steps, "
                f"got {self.micro_batches_per_group}; change sde.size, sde.fraction or steps"
            )

    def _check_attributes(self) -> None:
        how = self.advantage
        if how.aggregation != "attribute_aware":
            return
        unnamed = [reward.name for reward in self.rewards if reward.attribute is None]
        if unnamed:
            raise ValueError(
                f"rewards {unnamed} need attribute: fidelity or perceptual for advantage.aggregation attribute_aware"
            )
        if how.detail_share is None and not self.data.has_hr:
            raise ValueError(
                f"advantage.aggregation attribute_aware reads each HR image's detailed share, data.kind "
                f"'{self.data.kind}' has none; write advantage.detail_share=0.5"
            )
        kinds = {reward.attribute for reward in self.rewards}
        needed = {"fidelity": how.detail_share != 1.0, "perceptual": how.detail_share != 0.0}
        missing = [kind for kind, is_needed in needed.items() if is_needed and kind not in kinds]
        if missing:
            raise ValueError(f"advantage.aggregation attribute_aware needs a reward of attribute {missing}, got none")

    def _check_size(self) -> None:
        multiple = SIZE_MULTIPLES[self.policy.type]
        for where, data in (("data", self.data), ("eval.data", self.eval.data)):
            if data is not None and data.crop % multiple:
                low = data.crop // multiple * multiple
                raise ValueError(
                    f"{where}.crop must be divisible by {multiple} for policy '{self.policy.type}', got {data.crop}; "
                    f"write {low or multiple} or {low + multiple}"
                )
            if data is not None and data.scale != self.data.scale:
                raise ValueError(f"{where}.scale must equal data.scale {self.data.scale}, got {data.scale}")

    def _check_learner(self) -> None:
        ranks, groups = self.learner.ranks, self.train.groups_per_step
        if groups % ranks:
            raise ValueError(
                f"train.groups_per_step must be divisible by learner.ranks {ranks}, got {groups}: a group is never "
                "split over ranks"
            )
        if isinstance(self.objective, NFTConfig) and self.micro_batches_per_group < 1:
            raise ValueError(
                f"objective.timestep_fraction {self.objective.timestep_fraction} of {self.rollout.sampler.steps} "
                "sampler steps leaves no timestep to train on; raise one of them"
            )
        if self.micro_batches_per_rank % self.learner.updates_per_batch:
            raise ValueError(
                f"learner.updates_per_batch must divide the {self.micro_batches_per_rank} micro-batches of a rank "
                f"(groups x {self.micro_batches_per_group}), got {self.learner.updates_per_batch}"
            )

    def _check_devices(self) -> None:
        """Ray hides GPUs from an actor that asks for none, and keeps a GPU from others for an actor that asks."""
        device = self.policy.device
        for key, gpus in (
            ("rollout.gpus_per_worker", self.rollout.gpus_per_worker),
            ("learner.gpus_per_rank", self.learner.gpus_per_rank),
        ):
            if device == "cuda" and gpus == 0:
                raise ValueError(f"policy.device 'cuda' needs {key} above 0, got 0; write {key}=1")
            if device == "cpu" and gpus > 0:
                raise ValueError(f"{key} must be 0 for policy.device 'cpu', got {gpus:g}; write policy.device=cuda")

    @property
    def micro_batches_per_group(self) -> int:
        """How many micro-batches the objective makes of one group."""
        return self.objective.micro_batches_per_group(self.rollout.sampler)

    @property
    def micro_batches_per_rank(self) -> int:
        return self.train.groups_per_step // self.learner.ranks * self.micro_batches_per_group

    @property
    def micro_batches_per_update(self) -> int:
        return self.micro_batches_per_rank // self.learner.updates_per_batch

    @property
    def taggers(self) -> dict[str, TaggerConfig]:
        """Section -> the tagger that processes are started for. An evaluation whose tagger differs from training's in
        nothing but the image that it sees uses the processes of `data`."""
        ours, held_out = self.data.tagger, self.eval.data.tagger if self.eval.data else None
        found = {} if ours is None else {"data": ours}
        if held_out is not None and (ours is None or held_out.model_copy(update={"image": ours.image}) != ours):
            found["eval.data"] = held_out
        return found

    @property
    def total_cpus(self) -> float:
        """Logical CPUs that the roles ask of Ray."""
        rewards = sum(reward.cpus * reward.replicas for reward in self.rewards)
        taggers = sum(tagger.cpus * tagger.replicas for tagger in self.taggers.values())
        rollout = self.rollout.workers * self.rollout.cpus_per_worker
        return rewards + taggers + rollout + self.learner.ranks * self.learner.cpus_per_rank
