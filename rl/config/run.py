"""An online run: sections put together, and the combinations that cannot work refused by name."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rl.config.advantage import AnyAdvantage, DecoupledSection
from rl.config.base import ReadWith, Section
from rl.config.data import AnyData
from rl.config.learner import LearnerSection
from rl.config.monitor import MonitorConfig
from rl.config.objective import AnyObjective, NFTSection
from rl.config.policy import AnyPolicy
from rl.config.reward import RewardConfig
from rl.config.rollout import SAMPLERS, AnySampler, RolloutSection, SamplerSection
from rl.config.tagger import TaggerConfig

SCHEMA_VERSION = 2
MOVED = (
    "kind: online is new at the root; rollout.sampler.shift is policy.shift; rollout.sampler.sde is read by solver sde "
    "alone; rollout.sampler.sde.one_step_std is rollout.sampler={solver: gaussian, std: ...}; rollout.vary and "
    "rollout.t_add_range are rollout.sampler={solver: one_step, t_add_range: ...}; data.hr_path belongs to kind "
    "paired, data.degradation to kind hr"
)
"""What schema version 1 had elsewhere."""


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
    """Checkpoints of a run; `isrl train ... --resume` continues from the newest."""

    every: int = Field(50, ge=1)
    keep: int = Field(2, ge=1)


class EvalSection(Section):
    """Held-out photographs, restored by the EMA policy before, during and after training with the same seeds."""

    data: AnyData
    crops: int = Field(64, ge=1)
    samples: int = Field(1, ge=1)
    """Samples per crop."""
    every: int = Field(0, ge=0)
    """Steps between evaluations in the middle of the run; 0: only before and after."""
    sampler: AnySampler | None = None
    """Without a value: that of `rollout`, or its deterministic counterpart."""


class RayConfig(Section):
    """Where the actors run."""

    address: str | None = None
    """None starts Ray on this machine; `auto` or `ray://host:port` joins a cluster."""
    num_cpus: Annotated[int | None, ReadWith("address", None)] = None
    """Logical CPUs of a local Ray; None counts what the roles ask for, so that a laptop never waits for itself."""
    object_store_mb: Annotated[int, Field(ge=80), ReadWith("address", None)] = 512


class RunConfig(Section):
    """One online training run: groups are sampled, scored and trained on while it goes."""

    kind: Literal["online"] = "online"
    seed: int = Field(0, ge=0)
    run: RunSection = RunSection()
    train: TrainSection = TrainSection()
    data: AnyData
    policy: AnyPolicy = Field(default_factory=dict, validate_default=True)
    """Without a value: the embedded flux2sr preset."""
    rollout: RolloutSection = RolloutSection()
    rewards: list[RewardConfig] = Field(min_length=1)
    advantage: AnyAdvantage = DecoupledSection()
    objective: AnyObjective = NFTSection()
    learner: LearnerSection = LearnerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection | None = None
    """None: no evaluation."""
    monitor: MonitorConfig = MonitorConfig()
    ray: RayConfig = RayConfig()
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
        self.advantage.check(self.rewards, has_hr=self.data.has_hr)
        self._check_shares()
        self._check_devices()
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(f"rewards: names must differ, got {names}; set `name` and `metric` apart")
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

    def _check_shares(self) -> None:
        """Every update of every rank gets as many micro-batches, and each what `objective.order` promises it."""
        ranks, groups, updates = self.learner.ranks, self.train.groups_per_step, self.learner.updates_per_batch
        if groups % ranks:
            raise ValueError(
                f"train.groups_per_step must be divisible by learner.ranks {ranks}, got {groups}: a group is never "
                "split over ranks"
            )
        if self.objective.update_order == "timesteps":
            shared, what = self.slots, "slots of a group, so that every update sees every group"
        else:
            shared = groups // ranks * self.parts_per_group
            what = "micro-batches of members of a rank, of which every update gets its share"
        if shared % updates:
            raise ValueError(f"learner.updates_per_batch must divide the {shared} {what}; got {updates}")
        if self.objective.likelihood and self.learner.micro_batch not in (None, self._sampled_at_once):
            raise ValueError(
                f"learner.micro_batch must equal rollout.micro_batch ({self._sampled_at_once} members) for objective "
                f"'{self.objective.type}', got {self.learner.micro_batch}: a likelihood is repeated as it was sampled"
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
    def sampler(self) -> SamplerSection:
        """The sampler of training groups."""
        return self.rollout.sampler or default_sampler(self.policy.solvers[0])

    @property
    def eval_sampler(self) -> SamplerSection:
        """The sampler of an evaluation."""
        return (self.eval.sampler if self.eval else None) or self.sampler.deterministic

    @property
    def slots(self) -> int:
        """How often each member of a group is trained on in one batch."""
        return self.objective.slots(self.sampler)

    @property
    def _sampled_at_once(self) -> int:
        return self.rollout.micro_batch or self.rollout.group_size

    @property
    def micro_batch(self) -> int:
        """Members, or pairs, of one forward and backward of the learner."""
        items = 1 if self.objective.pairs else self.rollout.group_size
        return min(self.learner.micro_batch or self._sampled_at_once, items)

    @property
    def parts_per_group(self) -> int:
        """Micro-batches in which a group is trained at one slot."""
        items = 1 if self.objective.pairs else self.rollout.group_size
        return -(-items // self.micro_batch)

    @property
    def micro_batches_per_group(self) -> int:
        return self.slots * self.parts_per_group

    @property
    def micro_batches_per_update(self) -> int:
        per_rank = self.train.groups_per_step // self.learner.ranks * self.micro_batches_per_group
        return per_rank // self.learner.updates_per_batch

    @property
    def taggers(self) -> dict[str, TaggerConfig]:
        """Section -> the tagger that processes are started for. An evaluation whose tagger differs from training's in
        nothing but the image that it sees uses the processes of `data`."""
        ours, held_out = self.data.tagger, self.eval.data.tagger if self.eval else None
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


def default_sampler(solver: str) -> SamplerSection:
    """A sampler by its solver, with the defaults of its section."""
    from rl.config.open_union import load

    section: SamplerSection = load(SAMPLERS[solver])(solver=solver)
    return section
