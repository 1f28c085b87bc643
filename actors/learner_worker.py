"""A learner rank as a Ray actor: joins the process group, resolves references, publishes snapshots."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from rl.config.run import RunConfig
from rl.types import F64, LoraSnapshot, RolloutGroup, SRTask, TrainGroup

if TYPE_CHECKING:
    from learner.learner import Learner, TrainReport


@dataclass(frozen=True, eq=False)
class Published:
    """A snapshot put once into the object store, and what that took."""

    ref: "ray.ObjectRef[LoraSnapshot]"
    version: int
    digest: str
    size_bytes: int
    gather_s: float
    put_s: float


class LearnerActor:
    """One rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.learner: Learner | None = None

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray leaves it untyped
            return host, probe.getsockname()[1]

    def start(self, config: RunConfig, master: tuple[str, int]) -> None:
        """Build the learner; returns when all ranks have joined. torch is imported here, never in the driver."""
        from learner.learner import Learner

        os.environ.update(
            RANK=str(self.rank), LOCAL_RANK="0", WORLD_SIZE=str(config.learner.ranks),
            MASTER_ADDR=master[0], MASTER_PORT=str(master[1]),
        )  # fmt: skip
        self.learner = Learner(config)

    def _ready(self) -> "Learner":
        if self.learner is None:
            raise RuntimeError(f"learner rank {self.rank} was not started")
        return self.learner

    def train(self, advantages: list[F64], *carriers: SRTask | RolloutGroup) -> "TrainReport":
        """Tasks first, then their groups; Ray resolves top-level references only, hence the flat arguments."""
        tasks, groups = carriers[: len(advantages)], carriers[len(advantages) :]
        batch = []
        for task, group, advantage in zip(tasks, groups, advantages, strict=True):
            if not isinstance(task, SRTask) or not isinstance(group, RolloutGroup):
                raise TypeError(f"train: expected tasks, then groups, got {type(task)}, {type(group)}")
            batch.append(TrainGroup(task, group, np.asarray(advantage)))
        return self._ready().train(batch)

    def publish(self, *, ema: bool = False) -> Published:
        """Gather the behaviour adapter (or the EMA) and put it once."""
        started = time.perf_counter()
        learner = self._ready()
        snapshot = learner.ema_snapshot() if ema else learner.snapshot()
        gathered = time.perf_counter()
        ref = ray.put(snapshot)
        size = sum(array.nbytes for array in snapshot.tensors.values())
        put_s = time.perf_counter() - gathered
        return Published(ref, snapshot.version, snapshot.digest, size, gathered - started, put_s)

    def save(self, folder: Path) -> None:
        self._ready().save(folder)

    def load(self, folder: Path) -> int:
        """Returns the restored version."""
        self._ready().load(folder)
        return self._ready().version
