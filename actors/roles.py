"""The roles as Ray actors: each resolves references and builds its plain class inside the process, so that the driver
never imports torch. The plain classes document the methods."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from rl.config.online import RunConfig
from rl.config.reward import RewardSection
from rl.config.tagger import TaggerSection
from rl.config.training import TrainingSection
from rl.types import (
    F16,
    F64,
    Echo,
    ImageTags,
    LoraSnapshot,
    RewardColumn,
    RolloutGroup,
    RolloutReceipt,
    SRTask,
    TagRequest,
    TrainItem,
)

if TYPE_CHECKING:
    from learner.learner import Learner
    from learner.report import TrainReport
    from learner.state import StateFiles


class RolloutActor:
    """One `rl.rollout.RolloutWorker`."""

    def __init__(self, config: RunConfig) -> None:
        from rl.rollout import RolloutWorker

        self.worker = RolloutWorker(config)

    def ready(self) -> str | None:
        """Returns the digest of the reference adapter once the model is loaded."""
        return self.worker.adapters.reference_digest()

    def install(self, snapshot: LoraSnapshot, *, probe: bool = False) -> Echo:
        return self.worker.install(snapshot, probe=probe)

    def rollout(
        self, task: SRTask, seeds: tuple[int, ...], *, training: bool = True
    ) -> tuple[RolloutReceipt, RolloutGroup]:
        """The two results are separate objects, so the driver can fetch the receipt alone."""
        return self.worker.rollout(task, seeds, training=training)


class RewardActor:
    """One `rewards.server.RewardServer`."""

    def __init__(self, config: RewardSection, cell_px: int | None = None) -> None:
        from rewards.server import RewardServer

        self.server = RewardServer(config, threads=config.threads, cell_px=cell_px)

    def ready(self) -> str:
        """Answers when the model is loaded."""
        return self.server.config.name

    def score(self, count: int, *carriers: SRTask | RolloutGroup) -> list[RewardColumn]:
        """`count` tasks, then their groups; Ray resolves top-level references only, hence the flat arguments."""
        tasks = [carrier for carrier in carriers[:count] if isinstance(carrier, SRTask)]
        groups = [carrier for carrier in carriers[count:] if isinstance(carrier, RolloutGroup)]
        return self.server.score(tasks, groups)


class TaggerActor:
    """One `rewards.taggers.server.TaggerServer` of one data section."""

    def __init__(self, where: str, config: TaggerSection) -> None:
        from rewards.taggers.server import TaggerServer

        self.server = TaggerServer(where, config, threads=config.threads)

    def ready(self) -> str:
        """Answers when the model is loaded."""
        return self.server.name

    def tag(self, *requests: TagRequest) -> list[ImageTags]:
        return self.server.tag(requests)


@dataclass(frozen=True, eq=False)
class Published:
    """A snapshot put once into the object store, and the time this took."""

    ref: "ray.ObjectRef[LoraSnapshot]"
    version: int
    digest: str
    size_bytes: int
    gather_s: float
    put_s: float


class LearnerActor:
    """One rank of `learner.learner.Learner`."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.learner: Learner | None = None

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray leaves it untyped
            return host, probe.getsockname()[1]

    def start(self, config: TrainingSection, master: tuple[str, int]) -> str | None:
        """Build the learner; returns the digest of the reference adapter once all ranks have joined."""
        from learner.learner import Learner

        os.environ.update(
            RANK=str(self.rank), LOCAL_RANK="0", WORLD_SIZE=str(config.learner.ranks),
            MASTER_ADDR=master[0], MASTER_PORT=str(master[1]),
        )  # fmt: skip
        self.learner = Learner(config)
        return self.learner.reference_digest()

    def _ready(self) -> "Learner":
        if self.learner is None:
            raise RuntimeError(f"learner rank {self.rank} was not started")
        return self.learner

    def train(self, advantages: Sequence[F64 | F16], *carriers: SRTask | RolloutGroup) -> "TrainReport":
        """Tasks first, then their groups; Ray resolves top-level references only, hence the flat arguments. One `[G]`
        or `[G, h, w]` of advantages per group, from which its pairs, if any, are chosen."""
        from rl.preferences import train_item

        learner = self._ready()
        tasks, groups = carriers[: len(advantages)], carriers[len(advantages) :]
        items: list[TrainItem] = []
        for task, group, row in zip(tasks, groups, advantages, strict=True):
            if not isinstance(task, SRTask) or not isinstance(group, RolloutGroup):
                raise TypeError(f"train: expected tasks, then groups, got {type(task)}, {type(group)}")
            items.append(train_item(task, group, row, pairs=learner.config.objective.pairs))
        return learner.train(items)

    def publish(self, *, ema: bool = False) -> Published:
        """Gather the newest adapter (or the EMA) and put it into the object store once."""
        started = time.perf_counter()
        learner = self._ready()
        snapshot = learner.ema_snapshot() if ema else learner.snapshot()
        gathered = time.perf_counter()
        ref = ray.put(snapshot)
        size = sum(array.nbytes for array in snapshot.tensors.values())
        put_s = time.perf_counter() - gathered
        return Published(ref, snapshot.version, snapshot.digest, size, gathered - started, put_s)

    def save(self) -> "StateFiles":
        return self._ready().save()

    def load(self, files: "StateFiles") -> int:
        """Returns the version that was loaded."""
        self._ready().load(files)
        return self._ready().version
