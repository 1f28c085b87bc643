"""The process graph, built in one place.

driver ── RolloutActor x N ── RewardActor x replicas, per reward ── LearnerActor x ranks
       ── TaggerActor x replicas, where a data section has a tagger
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.deadline import get_within
from actors.role import Recipe
from rl.config.online import RunConfig
from rl.config.reward import RewardSection
from rl.config.server import ServerSection
from rl.config.tagger import TaggerSection
from rl.config.training import TrainingSection

ROLLOUT = "rollout"
IN_FLIGHT = 2
"""Calls per rollout worker, so that it never waits for the driver between two groups."""
TWO_REFERENCES = (
    "policy.reference: learner ranks and rollout workers hold different adapters, digests {digests}; copy the same "
    "file to every machine"
)


def reward_role(name: str) -> str:
    return f"reward.{name}"


def tagger_role(where: str) -> str:
    return f"tagger.{where}"


@dataclass(frozen=True, eq=False)
class Cluster:
    """The processes of an online run: the learner's ranks, and how members of every other role are made."""

    learners: tuple[Any, ...]
    started: list[Any]
    """One call per rank, which ends when all ranks have joined, with the digest of the reference adapter."""
    roles: tuple[Recipe, ...]


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
    """Ask Ray for the learner's ranks, and say how the others are made; nothing is waited for but rank 0's address."""
    learners, started = _spawn_learners(config)
    rewards = [_reward_recipe(reward, config.map_cell_px) for reward in config.rewards]
    taggers = [_tagger_recipe(where, tagger) for where, tagger in config.taggers.items()]
    return Cluster(learners, started, (_rollout_recipe(config), *rewards, *taggers))


def spawn_learners(config: TrainingSection) -> tuple[Any, ...]:
    """Create only the learner's ranks, all that an offline run needs, and wait until they have joined one another."""
    learners, started = _spawn_learners(config)
    digests = get_within(started, config.learner.deadline_s, "start of the learner", "learner.deadline_s")
    refuse_two_references(digests)
    return learners


def _spawn_learners(config: TrainingSection) -> tuple[tuple[Any, ...], list[Any]]:
    """The ranks, and the calls that end when each has joined the others."""
    learners = tuple(_spawn_learner(config, rank) for rank in range(config.learner.ranks))
    deadline_s = config.learner.deadline_s
    master = get_within(learners[0].address.remote(), deadline_s, "start of the learner", "learner.deadline_s")
    return learners, [learner.start.remote(config, master) for learner in learners]


def refuse_two_references(digests: list[str | None]) -> None:
    """Sampling and losses must use the same reference; a file that differs between machines would break that."""
    if len(set(digests)) > 1:
        raise RuntimeError(TWO_REFERENCES.format(digests=digests))


def _rollout_recipe(config: RunConfig) -> Recipe:
    import ray

    from actors.roles import RolloutActor

    cpus, gpus = config.rollout.cpus_per_worker, config.rollout.gpus_per_worker
    placed = ray.remote(RolloutActor).options(num_cpus=cpus, num_gpus=gpus)
    return Recipe(ROLLOUT, config.rollout.workers, lambda: placed.remote(config), end, slots=IN_FLIGHT)


def _reward_recipe(config: RewardSection, cell_px: int | None) -> Recipe:
    from actors.roles import RewardActor

    placed = _server(RewardActor, config)
    return _server_recipe(reward_role(config.name), config, lambda: placed.remote(config, cell_px))


def _tagger_recipe(where: str, config: TaggerSection) -> Recipe:
    from actors.roles import TaggerActor

    placed = _server(TaggerActor, config)
    return _server_recipe(tagger_role(where), config, lambda: placed.remote(where, config))


def _server_recipe(name: str, config: ServerSection, start: Callable[[], Any]) -> Recipe:
    return Recipe(name, config.replicas, start, end, slots=config.slots, concurrency=config.slots)


def end(handle: Any) -> None:
    """End a process at once, whatever it is doing; its waiting calls fail."""
    import ray

    ray.kill(handle)


def _server(actor: type, config: ServerSection) -> Any:
    """The actor class with the resources of one replica."""
    import ray

    options: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_concurrency": config.slots}
    if config.runtime_env is not None:
        options["runtime_env"] = config.runtime_env
    return ray.remote(actor).options(**options)


def _spawn_learner(config: TrainingSection, rank: int) -> Any:
    import ray

    from actors.roles import LearnerActor

    remote = ray.remote(LearnerActor)
    cpus, gpus = config.learner.cpus_per_rank, config.learner.gpus_per_rank
    return remote.options(num_cpus=cpus, num_gpus=gpus).remote(rank)
