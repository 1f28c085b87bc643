"""What several benchmarks share: where photographs lie, which were kept from training, a process group of one."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from rewards.server import RewardServer
from rl.evaluation.bootstrap import Interval
from rl.types import F64, RewardTable, RolloutGroup, SRTask

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
KODAK = [str(DATA / "hr_photos" / "kodak" / f"kodim{i:02d}.png") for i in (3, 6, 10, 17, 20, 24)]
"""Neither the presets nor a recipe's run is trained on these."""
HELD_OUT = [*KODAK, "skimage:coffee", "skimage:chelsea", "skimage:rocket", "skimage:motorcycle_left"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a learner's rank has to find in its environment."""
    return {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def be_the_only_rank() -> None:
    """Let a `Learner` be built in this process."""
    os.environ.update(rank_environment(0, 1, free_port()))


def tables(
    servers: Sequence[RewardServer], tasks: Sequence[SRTask], groups: Sequence[RolloutGroup]
) -> list[RewardTable]:
    """Scores, and maps where the servers make them, group by group as in a run."""
    return [
        RewardTable.of(task.ordinal, [server.score([task], [group])[0] for server in servers])
        for task, group in zip(tasks, groups, strict=True)
    ]


def scores(servers: Sequence[RewardServer], tasks: Sequence[SRTask], groups: Sequence[RolloutGroup]) -> F64:
    """`[N, G, R]`"""
    return np.stack([table.scores for table in tables(servers, tasks, groups)])


def over_seeds(values: F64) -> Interval:
    """Mean `[seeds >= 2]` with Student's 95 % interval."""
    mean, n = float(values.mean()), len(values)
    half = float(student_t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half)
