"""Benchmark 6: LucidNFT's advantage separability on the quickstart's rollouts, with the plot.

    uv run python tests/benchmarks/bench_separability.py OUT.png [--groups 24] [--smoke] [overrides ...]

Groups of 16 of the untrained quickstart policy; both aggregations see the same scores.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, scores
from separability import plot_separability, separability

from rewards.server import RewardServer
from rl.advantages import weights_and_scales
from rl.config.load import load_config
from rl.data.source import TaskSource
from rl.policies.lora import OLD, take_snapshot
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds

MEMBERS = 16


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--groups", type=int, default=24)
    parser.add_argument("--save", type=Path, help="also keep images, hr, lr and scores as npz")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--smoke", action="store_true", help="two groups of small images, two sampler steps")
    options = parser.parse_intermixed_args(argv)
    small = ["data.crop=64", "rollout.sampler.steps=2", "objective.timestep_fraction=1", "learner.updates_per_batch=1"]
    overrides = [*(small if options.smoke else ()), *options.overrides]
    config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    torch.set_num_threads(config.rollout.threads)
    worker = RolloutWorker(config)
    worker.install(take_snapshot(worker.adapters.parameters(OLD), 0))
    source = TaskSource(config.data, config.seed)
    servers = [RewardServer(reward) for reward in config.rewards]
    tasks = [source.task(ordinal) for ordinal in range(2 if options.smoke else options.groups)]
    groups = [worker.rollout(task, member_seeds(config.seed, task.ordinal, MEMBERS))[1] for task in tasks]
    table = scores(servers, tasks, groups)
    if options.save is not None:
        hr = np.stack([task.hr for task in tasks if task.hr is not None])
        lr = np.stack([task.lr for task in tasks])
        np.savez(options.save, images=np.stack([group.images for group in groups]), hr=hr, lr=lr, scores=table)
    how = config.advantage
    rows = separability(table, *weights_and_scales(config.rewards), std_floor=how.std_floor, eps=how.eps)
    plot_separability(options.out, rows)
    print("| aggregation | G | distinct levels | mean pairwise gap | largest gap |\n|---|---|---|---|---|")
    for row in rows:
        levels, mean, largest = f"{row.distinct_levels:.2f}", f"{row.mean_gap:.3f}", f"{row.max_gap:.3f}"
        print(f"| {row.aggregation} | {row.group_size} | {levels} | {mean} | {largest} |")


if __name__ == "__main__":
    main()
