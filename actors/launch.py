"""The process graph, built in one place.

driver ── RolloutActor x N ── RewardActor x replicas, per reward ── LearnerActor x ranks
"""

import logging
import math
import os
from dataclasses import dataclass
from typing import Any

from actors.deadline import get_within
from rl.config.reward import RewardConfig
from rl.config.run import RunConfig


@dataclass(frozen=True, eq=False)
class Cluster:
    """Handles of every process of a run."""

    workers: tuple[Any, ...]
    rewards: dict[str, tuple[Any, ...]]
    """Reward name -> replicas."""
    learners: tuple[Any, ...]


def start_ray(config: RunConfig) -> None:
    """Start Ray on this machine, or join the cluster of `ray.address`."""
    # else Ray hides the GPUs from every actor that asks for none, and warns at each start that it will stop doing so
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
    """Create every actor and wait until each has loaded its model; the learner's ranks join each other last."""
    workers = _spawn_workers(config)
    rewards = {r.name: tuple(_spawn_reward(r) for _ in range(r.replicas)) for r in config.rewards}
    learners = tuple(_spawn_learner(config, rank) for rank in range(config.learner.ranks))
    deadline_s = config.learner.deadline_s
    master = get_within(learners[0].address.remote(), deadline_s, "start of the learner", "learner.deadline_s")
    started = [learner.start.remote(config, master) for learner in learners]
    ready = [actor.ready.remote() for actor in (*workers, *(s for pool in rewards.values() for s in pool))]
    get_within([*started, *ready], deadline_s, "start of all processes", "learner.deadline_s")
    return Cluster(workers, rewards, learners)


def _spawn_workers(config: RunConfig) -> tuple[Any, ...]:
    import ray

    from actors.rollout_worker import RolloutActor

    remote = ray.remote(RolloutActor)
    cpus, gpus = config.rollout.cpus_per_worker, config.rollout.gpus_per_worker
    placed = remote.options(num_cpus=cpus, num_gpus=gpus)
    return tuple(placed.remote(config) for _ in range(config.rollout.workers))


def _spawn_reward(config: RewardConfig) -> Any:
    import ray

    from actors.reward_server import RewardActor

    options: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": config.gpus}
    if config.runtime_env is not None:
        options["runtime_env"] = config.runtime_env
    return ray.remote(RewardActor).options(**options).remote(config)


def _spawn_learner(config: RunConfig, rank: int) -> Any:
    import ray

    from actors.learner_worker import LearnerActor

    remote = ray.remote(LearnerActor)
    cpus, gpus = config.learner.cpus_per_rank, config.learner.gpus_per_rank
    return remote.options(num_cpus=cpus, num_gpus=gpus).remote(rank)
