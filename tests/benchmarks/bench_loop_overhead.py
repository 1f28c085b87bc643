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

from free_processes import REWARD, free_cluster

from actors.controller import Controller
from actors.launch import start_ray
from actors.monitor import Monitor
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.metrics import Key, read_metrics

WARM_STEPS = 5


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
        cluster = free_cluster(config, folder / "births")
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
