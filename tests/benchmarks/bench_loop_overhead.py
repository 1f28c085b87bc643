"""Benchmark 4: the whole loop with a free policy and a free reward.

    uv run python tests/benchmarks/bench_loop_overhead.py [--steps 40] [--smoke]

The real Controller, lanes, reward pool and server, ledger, metrics file and weight push; only the sampling, the metric
and the optimiser cost nothing. Groups of 12 images of 64x64. Limit: at least 100 groups a second.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.controller import Controller
from actors.fleet import Recipe
from actors.launch import IN_FLIGHT, ROLLOUT, Cluster, end, reward_role, start_ray
from actors.monitor import Monitor
from actors.roles import LearnerActor, Published, RewardActor, RolloutActor
from learner.report import TrainReport
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.config.training import TrainingSection
from rl.metrics import Key, read_metrics
from rl.types import F32, F64, Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask, adapter_digest

REWARD = """
import numpy as np

def score(images, lr, hr, scale):
    return images[:, 0, 0, 0].astype(np.float64)
"""
WARM_STEPS = 5


class FreeRollout(RolloutActor):
    """Answers at once with images that were made before."""

    def __init__(self, group_size: int, side: int) -> None:
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
        version, digest = self.echo.version, self.echo.digest
        group = RolloutGroup(task.ordinal, task.lr_id, version, digest, seeds, self.latents, self.images)
        return RolloutReceipt(task.ordinal, version, digest, len(seeds), 0.0), group


class FreeLearner(LearnerActor):
    """Reads every group, takes no optimiser step, publishes a small real snapshot."""

    def __init__(self) -> None:
        super().__init__(0)
        self.version = 0

    def start(self, config: TrainingSection, master: tuple[str, int]) -> None:
        """There is nothing to load."""

    def train(self, advantages: Sequence[F64 | F32], *carriers: SRTask | RolloutGroup) -> TrainReport:
        groups = [carrier for carrier in carriers[len(advantages) :] if isinstance(carrier, RolloutGroup)]
        assert all(len(group.latents) == len(a) for group, a in zip(groups, advantages, strict=True))
        self.version += 1
        return TrainReport(self.version, self.version, {Key.LOSS_TOTAL: 0.0}, {}, 0.0, 0.0, 0.0)

    def publish(self, *, ema: bool = False) -> Published:
        tensors = {"w": np.full((256, 256), self.version, dtype=np.float32)}
        import ray

        snapshot = LoraSnapshot(self.version, adapter_digest({**tensors}, "float32"), {**tensors}, "float32")
        return Published(ray.put(snapshot), self.version, snapshot.digest, tensors["w"].nbytes, 0.0, 0.0)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


def run(folder: Path, steps: int, groups: int) -> tuple[float, list[float]]:
    """(seconds of the whole run, seconds of each step after the warm ones)."""
    import ray  # after actors, which keeps it from starting its workers by `uv run`

    (folder / "free.py").write_text(REWARD)
    raw = {
        "run": {"dir": str(folder), "name": "loop"},
        "train": {"steps": steps, "groups_per_step": groups, "max_policy_lag": 1},
        "data": {"kind": "lr", "path": "skimage:astronaut", "crop": 64},
        "rewards": [{"name": "free", "type": "python", "file": str(folder / "free.py"), "batch_groups": 8}],
        "monitor": {"progress": False, "sample_every": 10**6},
        "checkpoint": {"every": 10**6},
        "ray": {"num_cpus": 4},
    }
    config = validate(RunConfig, raw, "bench_loop_overhead")
    start_ray(config)
    try:
        (reward,) = config.rewards
        size, side = config.rollout.group_size, config.data.crop
        rollout = Recipe(ROLLOUT, 1, lambda: ray.remote(FreeRollout).remote(size, side), end, slots=IN_FLIGHT)
        server = Recipe(reward_role(reward.name), 1, lambda: ray.remote(RewardActor).remote(reward), end)
        learner: Any = ray.remote(FreeLearner).remote()
        cluster = Cluster((learner,), [learner.start.remote(config, ("", 0))], (rollout, server))
        controller = Controller(config, cluster, Monitor(config.monitor, folder, "loop", steps, {}), folder)
        started = time.perf_counter()
        asyncio.run(controller.run(resume=False))
        wall_s = time.perf_counter() - started
    finally:
        ray.shutdown()
    records = read_metrics(folder / "metrics.jsonl")
    assert [record.step for record in records] == list(range(1, steps + 1))
    found = [record.values[Key.TIME_STEP] for record in records[WARM_STEPS:]]
    return wall_s, [value for value in found if isinstance(value, float)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="8 steps of 4 groups")
    options = parser.parse_args(argv)
    steps, groups = (8, 4) if options.smoke else (options.steps, 32)
    with tempfile.TemporaryDirectory() as name:
        wall_s, seconds = run(Path(name), steps, groups)
    row = {
        "groups_per_s_whole_run": steps * groups / wall_s,
        "groups_per_s_median_step": groups / statistics.median(seconds),
        "groups_per_s_slowest_decile": groups / sorted(seconds)[int(0.9 * len(seconds))],
        "groups": steps * groups,
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
