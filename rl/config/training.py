"""What all runs that train an adapter share, whether their groups are sampled or mined."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from rl.config.advantage import AnyAdvantage, DecoupledSection
from rl.config.base import ReadWith, Section
from rl.config.learner import LearnerSection
from rl.config.monitor import MonitorConfig
from rl.config.objective import AnyObjective, NFTSection
from rl.config.open_union import load
from rl.config.policy import AnyPolicy
from rl.config.rollout import SAMPLERS, SamplerSection


class RunSection(Section):
    """Where a run writes."""

    dir: str = "runs/isrl"
    """config.yaml, metrics.jsonl, eval.jsonl, checkpoints/, samples/, lora/ and report.md go here."""
    name: str = "isrl"


class TrainSection(Section):
    """The loop: each step trains on `groups_per_step` groups and makes one new adapter version."""

    steps: int = Field(100, ge=1)
    groups_per_step: int = Field(4, ge=1)


class CheckpointSection(Section):
    """Checkpoints of a run; `isrl train ... --resume` continues from the newest. The first is saved before the first
    step, the last at the end or at an interrupt."""

    every: int = Field(50, ge=1)
    """Steps between two checkpoints."""
    keep: int = Field(2, ge=1)
    """How many of the newest are kept."""
    best: str | None = None
    """A reward: the step with its highest mean in an evaluation (`eval.every`) is saved and kept too."""


class RayConfig(Section):
    """Where the actors run."""

    address: str | None = None
    """None starts Ray on this machine; `auto` or `ray://host:port` joins a cluster."""
    num_cpus: Annotated[int | None, ReadWith("address", None)] = None
    """Logical CPUs of a local Ray; None: as many as the roles request, so that a small machine never hangs."""
    object_store_mb: Annotated[int, Field(ge=80), ReadWith("address", None)] = 512


class TrainingSection(Section):
    """The sections that kinds `online` and `offline` share."""

    kind: str
    seed: int = Field(0, ge=0)
    run: RunSection = RunSection()
    train: TrainSection = TrainSection()
    policy: AnyPolicy = Field(default_factory=dict, validate_default=True)
    """If unset, the embedded flux2sr preset."""
    objective: AnyObjective = NFTSection()
    advantage: AnyAdvantage = DecoupledSection()
    learner: LearnerSection = LearnerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    monitor: MonitorConfig = MonitorConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _objective_is_read(self) -> Self:
        for why, keys in self._unread_objective_keys().items():
            unread = sorted(keys & self.objective.model_fields_set)
            if unread:
                raise ValueError(f"objective.{unread[0]} {why}; remove it")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        best = self.checkpoint.best
        if best is not None and best not in self.measured:
            names = ", ".join(self.measured) or "none: only an online run with eval.every above 0 has any"
            raise ValueError(f"checkpoint.best must be a reward of the evaluations ({names}), got '{best}'")
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        raw: dict[str, Any] = dump(self)
        unread = frozenset().union(*self._unread_objective_keys().values())
        return {**raw, "objective": {key: value for key, value in raw["objective"].items() if key not in unread}}

    def _unread_objective_keys(self) -> dict[str, frozenset[str]]:
        """Why -> the keys of the objective that this run does not read."""
        if self.advantage.spatial == "map":
            return {}
        return {"is read only with advantage.spatial: map": self.objective.spatial_keys}

    @property
    def sampler(self) -> SamplerSection:
        """The sampler of training groups; objectives train on its noise levels."""
        return default_sampler(self.policy.solvers[0])

    @property
    def eval_sampler(self) -> SamplerSection:
        """The sampler of evaluations and of restoring with the trained adapter."""
        return self.sampler.deterministic

    @property
    def group_size(self) -> int:
        """G, candidates per LR image."""
        raise NotImplementedError

    @property
    def sampled_at_once(self) -> int:
        """Members sampled in one batch of the backbone."""
        return self.group_size

    @property
    def max_policy_lag(self) -> int | None:
        """How many versions a group may lag behind; None where any age is allowed."""
        return None

    @property
    def measured(self) -> tuple[str, ...]:
        """Rewards that evaluations measure as the run goes on."""
        return ()

    @property
    def total_cpus(self) -> float:
        """Logical CPUs that the roles request from Ray."""
        return self.learner.ranks * self.learner.cpus_per_rank

    @property
    def slots(self) -> int:
        """How often each member of a group is trained on in one batch."""
        return self.objective.slots(self.sampler)

    @property
    def micro_batch(self) -> int:
        """Members, or pairs, in one forward and backward pass of the learner."""
        items = 1 if self.objective.pairs else self.group_size
        return min(self.learner.micro_batch or self.sampled_at_once, items)

    @property
    def parts_per_group(self) -> int:
        """Micro-batches in which a group is trained at one slot."""
        items = 1 if self.objective.pairs else self.group_size
        return -(-items // self.micro_batch)

    @property
    def micro_batches_per_group(self) -> int:
        return self.slots * self.parts_per_group

    @property
    def micro_batches_per_update(self) -> int:
        per_rank = self.train.groups_per_step // self.learner.ranks * self.micro_batches_per_group
        return per_rank // self.learner.updates_per_batch

    def _check_shares(self) -> None:
        """Every update of every rank gets the same number of micro-batches, divided as `objective.order` says."""
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
            if self.group_size % self.micro_batch and updates > 1:
                raise ValueError(
                    f"learner.micro_batch must divide a group of {self.group_size} for objective.order 'samples', got "
                    f"{self.micro_batch}: an update of smaller micro-batches would weigh less"
                )
        if shared % updates:
            raise ValueError(f"learner.updates_per_batch must divide the {shared} {what}; got {updates}")

    def _check_devices(self, roles: Mapping[str, float]) -> None:
        """Ray hides GPUs from an actor that requests none, and reserves those that an actor requests."""
        device = self.policy.device
        for key, gpus in {**roles, "learner.gpus_per_rank": self.learner.gpus_per_rank}.items():
            if device == "cuda" and gpus == 0:
                raise ValueError(f"policy.device 'cuda' needs {key} above 0, got 0; write {key}=1")
            if device == "cpu" and gpus > 0:
                raise ValueError(f"{key} must be 0 for policy.device 'cpu', got {gpus:g}; write policy.device=cuda")


def default_sampler(solver: str) -> SamplerSection:
    """The sampler of a solver, with the defaults of its section."""
    section: SamplerSection = load(SAMPLERS[solver])(solver=solver)
    return section
