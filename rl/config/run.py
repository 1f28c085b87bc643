"""The whole run: sections put together, and the combinations that cannot work refused by name."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rl.config.base import Section
from rl.config.data import DataConfig
from rl.config.monitor import MonitorConfig
from rl.config.objective import AdvantageConfig, LearnerConfig, NFTConfig
from rl.config.policy import PolicyConfig, RolloutConfig
from rl.config.reward import RewardConfig

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
    objective: NFTConfig = NFTConfig()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection = EvalSection()
    monitor: MonitorConfig = MonitorConfig()
    ray: RayConfig = RayConfig()
    schema_version: Literal[1] = 1

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self._check_group()
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
        if self.policy.type in ONE_STEP_POLICIES and not self.objective.allow_one_step:
            raise ValueError(
                f"objective 'nft' needs a multi-step generator, got policy '{self.policy.type}' (DiffusionNFT's "
                "authors: unsupported); use objective gdpo, or set objective.allow_one_step: true"
            )

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
        if self.timesteps_per_member < 1:
            raise ValueError(
                f"objective.timestep_fraction {self.objective.timestep_fraction} of {self.rollout.sampler.steps} "
                "sampler steps leaves no timestep to train on; raise one of them"
            )
        if self.micro_batches_per_rank % self.learner.updates_per_batch:
            raise ValueError(
                f"learner.updates_per_batch must divide the {self.micro_batches_per_rank} (group, timestep) "
                f"micro-batches of a rank, got {self.learner.updates_per_batch}"
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
    def timesteps_per_member(self) -> int:
        """floor(steps * fraction), DiffusionNFT's number of trained grid points."""
        return int(self.rollout.sampler.steps * self.objective.timestep_fraction)

    @property
    def micro_batches_per_rank(self) -> int:
        return self.train.groups_per_step // self.learner.ranks * self.timesteps_per_member

    @property
    def micro_batches_per_update(self) -> int:
        return self.micro_batches_per_rank // self.learner.updates_per_batch

    @property
    def total_cpus(self) -> float:
        """Logical CPUs that the roles ask of Ray."""
        rewards = sum(reward.cpus * reward.replicas for reward in self.rewards)
        rollout = self.rollout.workers * self.rollout.cpus_per_worker
        return rewards + rollout + self.learner.ranks * self.learner.cpus_per_rank
