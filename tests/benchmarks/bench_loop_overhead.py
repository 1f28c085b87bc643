"""Benchmark 4: the whole loop with a free policy and a free reward.

    uv run python tests/benchmarks/bench_loop_overhead.py [--steps 40]

The real Controller, lanes, reward pool and server, ledger, metrics file and weight push; only the sampling, the metric
and the optimiser cost nothing. Groups of 12 images of 64x64. Limit: at least 100 groups a second.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from actors.learner_worker import Published
from actors.reward_server import RewardActor

from actors.controller import Controller
from actors.launch import Cluster, start_ray
from actors.monitor import Monitor
from rl.config.load import validate
from rl.config.run import RunConfig
from rl.metrics import Key
from rl.types import Echo, LoraSnapshot, RolloutGroup, RolloutReceipt, SRTask, adapter_digest

REWARD = """
import numpy as np

def score(images, lr, hr, scale):
    return images[:, 0, 0, 0].astype(np.float64)
"""


class FreeRollout:
    """Answers at once with images that were made before."""

    def __init__(self, group_size: int, side: int) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (group_size, 3, side, side), dtype=np.uint8)
        self.latents = rng.standard_normal((group_size, 64, side // 16, side // 16)).astype(np.float32)
        self.echo = Echo(-1, "", 0.0, 0.0)

    def install(self, snapshot: LoraSnapshot) -> Echo:
        self.echo = Echo(snapshot.version, snapshot.digest, 0.0, 0.0)
        return self.echo

    def canary(self) -> float:
        return float(self.echo.version)

    def rollout(self, task: SRTask, seeds: tuple[int, ...]) -> tuple[RolloutReceipt, RolloutGroup]:
        version, digest = self.echo.version, self.echo.digest
        group = RolloutGroup(task.ordinal, task.lr_id, version, digest, seeds, self.latents, self.images)
        return RolloutReceipt(task.ordinal, version, digest, len(seeds), 0.0), group


class FreeLearner:
    """Reads every group, takes no optimiser step, publishes a small real snapshot."""

    def __init__(self) -> None:
        self.version = 0

    def train(self, advantages: list[Any], *carriers: Any) -> Any:
        groups = carriers[len(advantages) :]
        assert all(len(group.latents) == len(a) for group, a in zip(groups, advantages, strict=True))
        self.version += 1
        return SimpleNamespace(
            version=self.version, updates=self.version, losses={Key.LOSS_TOTAL: 0.0},
            grad_norm=0.0, lr=0.0, train_s=0.0,
        )  # fmt: skip

    def publish(self, *, ema: bool = False) -> Published:
        tensors = {"w": np.full((256, 256), self.version, dtype=np.float32)}
        snapshot = LoraSnapshot(self.version, adapter_digest(tensors, "float32"), tensors, "float32")
        return Published(ray.put(snapshot), self.version, snapshot.digest, tensors["w"].nbytes, 0.0, 0.0)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "free.py").write_text(REWARD)
        raw = {
            "run": {"dir": str(folder), "name": "loop"},
            "train": {"steps": options.steps, "groups_per_step": 32, "max_policy_lag": 1},
            "data": {"kind": "lr", "path": "skimage:astronaut", "crop": 64},
            "rewards": [{"name": "free", "type": "python", "file": str(folder / "free.py"), "batch_groups": 8}],
            "monitor": {"progress": False, "sample_every": 10**6},
            "checkpoint": {"every": 10**6},
            "ray": {"num_cpus": 4},
        }
        config = validate(RunConfig, raw, "bench_loop_overhead")
        start_ray(config)
        worker = ray.remote(FreeRollout).remote(config.rollout.group_size, config.data.crop)
        reward = ray.remote(RewardActor).remote(config.rewards[0])
        cluster = Cluster((worker,), {"free": (reward,)}, (ray.remote(FreeLearner).remote(),))
        ray.get(reward.ready.remote())
        monitor = Monitor(config.monitor, folder, "loop", options.steps, {})
        started = time.perf_counter()
        asyncio.run(Controller(config, cluster, monitor, folder).run(resume=False))
        wall_s = time.perf_counter() - started
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["time/step_s"] for line in lines[5:]]
    print(
        json.dumps(
            {
                "groups_per_s_whole_run": options.steps * 32 / wall_s,
                "groups_per_s_median_step": 32 / statistics.median(steps),
                "groups_per_s_slowest_decile": 32 / sorted(steps)[int(0.9 * len(steps))],
                "groups": options.steps * 32,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
