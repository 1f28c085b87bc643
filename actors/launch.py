"""The process graph, built in one place.

driver ── RolloutActor x N ── RewardActor x replicas, per reward ── LearnerActor x ranks
       ── TaggerActor x replicas, where a data section has a tagger
"""

import logging
import math
import os
from dataclasses import dataclass, field
from typing import Any

from actors.deadline import get_within
from rl.config.online import RunConfig
from rl.config.reward import RewardSection
from rl.config.server import ServerSection
from rl.config.tagger import TaggerSection
from rl.config.training import TrainingSection


@dataclass(frozen=True, eq=False)
class Cluster:
    """Handles of every process of a run."""

    workers: tuple[Any, ...]
    rewards: dict[str, tuple[Any, ...]]
    """Reward name -> replicas."""
    learners: tuple[Any, ...]
    taggers: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Data section -> replicas."""


def start_ray(config: TrainingSection) -> None:
    """Start Ray on this machine, or join the cluster of `ray.address`."""
    # otherwise Ray hides GPUs from actors that request none, and warns at every start that it will stop doing so
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if config.ray.address is not None:
        ray.init(address=config.ray.address, log_to_driver=True)
        return
    ray.init(
        num_cpus=config.ray.num_cpus or max(1, math.ceil(config.total_cpus)),
        object_store_memory=config.ray.object_store_mb * 2**20,
        include_dashboard=False,
        configure_logging=True,
        logging_level=logging.WARNING,
        log_to_driver=True,
    )


def spawn(config: RunConfig) -> Cluster:
    """Create every actor and wait until each has loaded its model; the learner's ranks join one another last."""
    workers = _spawn_workers(config)
    rewards = {r.name: tuple(_spawn_reward(r, config.map_cell_px) for _ in range(r.replicas)) for r in config.rewards}
    taggers = {at: tuple(_spawn_tagger(at, t) for _ in range(t.replicas)) for at, t in config.taggers.items()}
    learners, started = _spawn_learners(config)
    deadline_s = config.learner.deadline_s
    servers = [server for pool in (*rewards.values(), *taggers.values()) for server in pool]
    sampling = [worker.ready.remote() for worker in workers]
    ready = [server.ready.remote() for server in servers]
    answers = get_within([*started, *sampling, *ready], deadline_s, "start of all processes", "learner.deadline_s")
    _refuse_two_references(answers[: len(started) + len(sampling)])
    return Cluster(workers, rewards, learners, taggers)


def spawn_learners(config: TrainingSection) -> tuple[Any, ...]:
    """Create only the learner's ranks, all that an offline run needs, and wait until they have joined one another."""
    learners, started = _spawn_learners(config)
    digests = get_within(started, config.learner.deadline_s, "start of the learner", "learner.deadline_s")
    _refuse_two_references(digests)
    return learners


def _spawn_learners(config: TrainingSection) -> tuple[tuple[Any, ...], list[Any]]:
    """The ranks, and the calls that end when each has joined the others."""
    learners = tuple(_spawn_learner(config, rank) for rank in range(config.learner.ranks))
    deadline_s = config.learner.deadline_s
    master = get_within(learners[0].address.remote(), deadline_s, "start of the learner", "learner.deadline_s")
    return learners, [learner.start.remote(config, master) for learner in learners]


def _refuse_two_references(digests: list[str | None]) -> None:
    """Sampling and losses must use the same reference; a file that differs between machines would break that."""
    if len(set(digests)) > 1:
        raise RuntimeError(
            f"policy.reference: learner ranks and rollout workers hold different adapters, digests {digests}; copy the "
            "same file to every machine"
        )


def _spawn_workers(config: RunConfig) -> tuple[Any, ...]:
    import ray

    from actors.roles import RolloutActor

    remote = ray.remote(RolloutActor)
    cpus, gpus = config.rollout.cpus_per_worker, config.rollout.gpus_per_worker
    placed = remote.options(num_cpus=cpus, num_gpus=gpus)
    return tuple(placed.remote(config) for _ in range(config.rollout.workers))


def _spawn_reward(config: RewardSection, cell_px: int | None) -> Any:
    from actors.roles import RewardActor

    return _server(RewardActor, config).remote(config, cell_px)


def _spawn_tagger(where: str, config: TaggerSection) -> Any:
    from actors.roles import TaggerActor

    return _server(TaggerActor, config).remote(where, config)


def _server(actor: type, config: ServerSection) -> Any:
    """The actor class with the resources of one replica."""
    import ray

    options: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": config.gpus}
    if config.runtime_env is not None:
        options["runtime_env"] = config.runtime_env
    return ray.remote(actor).options(**options)


def _spawn_learner(config: TrainingSection, rank: int) -> Any:
    import ray

    from actors.roles import LearnerActor

    remote = ray.remote(LearnerActor)
    cpus, gpus = config.learner.cpus_per_rank, config.learner.gpus_per_rank
    return remote.options(num_cpus=cpus, num_gpus=gpus).remote(rank)
