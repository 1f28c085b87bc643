"""Real Ray actors for every role, whose work costs nothing: for the loop's own speed, and to be killed."""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.launch import IN_FLIGHT, ROLLOUT, Cluster, end, reward_role
from actors.role import Recipe
from actors.roles import LearnerActor, Published, RewardActor, RolloutActor
from learner.report import TrainReport
from learner.state import StateFiles, rng_file
from rl.config.online import RunConfig
from rl.config.reward import RewardSection
from rl.config.training import TrainingSection
from rl.metrics import Key
from rl.types import F16, F64, Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask, adapter_digest

REWARD = """
import numpy as np

def score(images, lr, hr, scale):
    return images[:, 0, 0, 0].astype(np.float64)
"""


class FreeRollout(RolloutActor):
    """Answers after `seconds` with images that were made before."""

    def __init__(self, group_size: int, side: int, seconds: float, births: Path) -> None:
        self.seconds = seconds
        _born(births, ROLLOUT)
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (group_size, 3, side, side), dtype=np.uint8)
        self.latents = rng.standard_normal((group_size, 64, side // 16, side // 16)).astype(np.float32)
        self.echo: Echo

    def ready(self) -> None:
        """There is nothing to load."""

    def install(self, snapshot: LoraSnapshot, *, probe: bool = False) -> Echo:
        effect = float(snapshot.version) if probe else None
        self.echo = Echo(snapshot.version, snapshot.digest, 0.0, 0.0, 1, effect)
        return self.echo

    def rollout(
        self, task: SRTask, seeds: tuple[int, ...], *, training: bool = True
    ) -> tuple[RolloutReceipt, RolloutGroup]:
        time.sleep(self.seconds)
        version, digest = self.echo.version, self.echo.digest
        group = RolloutGroup(task.ordinal, task.lr_id, version, digest, seeds, self.latents, self.images)
        return RolloutReceipt(task.ordinal, version, digest, len(seeds), 0.0), group


class FreeReward(RewardActor):
    """A real server of a user's file."""

    def __init__(self, config: RewardSection, births: Path) -> None:
        super().__init__(config)
        _born(births, config.name)


def _born(births: Path, role: str) -> None:
    """Leave the process's number where a test finds it."""
    births.mkdir(parents=True, exist_ok=True)
    (births / f"{role}-{os.getpid()}").touch()


class FreeLearner(LearnerActor):
    """Reads every group, takes no optimiser step, publishes a small real snapshot."""

    def __init__(self) -> None:
        super().__init__(0)
        self.version = 0

    def start(self, config: TrainingSection, master: tuple[str, int]) -> None:
        """There is nothing to load."""

    def train(self, advantages: Sequence[F64 | F16], *carriers: SRTask | RolloutGroup) -> TrainReport:
        groups = [carrier for carrier in carriers[len(advantages) :] if isinstance(carrier, RolloutGroup)]
        assert all(len(group.latents) == len(a) for group, a in zip(groups, advantages, strict=True))
        self.version += 1
        return TrainReport(self.version, self.version, {Key.LOSS_TOTAL: 0.0}, {}, 0.0, 0.0, 0.0)

    def publish(self, *, ema: bool = False) -> Published:
        tensors = {"w": np.full((256, 256), self.version, dtype=np.float32)}
        import ray

        snapshot = LoraSnapshot(self.version, adapter_digest({**tensors}, "float32"), {**tensors}, "float32")
        return Published(ray.put(snapshot), self.version, snapshot.digest, tensors["w"].nbytes, 0.0, 0.0)

    def save(self) -> StateFiles:
        return StateFiles.of({rng_file(0): b"{}"})


def free_cluster(config: RunConfig, births: Path, seconds: float = 0.0) -> Cluster:
    """An online run's processes; each leaves a file ROLE-PID in `births` when it is made."""
    import ray

    # by value, as workers do not know this folder
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # ray's own
    size, side = config.rollout.group_size, config.data.crop
    few = {"num_cpus": 0.1}
    worker, server = (ray.remote(kind).options(**few) for kind in (FreeRollout, FreeReward))
    workers = partial(worker.remote, size, side, seconds, births)
    rewards = [
        Recipe(reward_role(reward.name), reward.replicas, partial(server.remote, reward, births), end)
        for reward in config.rewards
    ]
    learner: Any = ray.remote(FreeLearner).options(**few).remote()
    roles = (Recipe(ROLLOUT, config.rollout.workers, workers, end, slots=IN_FLIGHT), *rewards)
    return Cluster((learner,), [learner.start.remote(config, ("", 0))], roles)
