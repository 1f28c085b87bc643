"""Benchmark 6: LucidNFT's advantage separability on the quickstart's rollouts, with the plot.

    uv run python tests/benchmarks/bench_separability.py OUT.png [--groups 24] [overrides ...]

Groups of 16 of the untrained quickstart policy; both aggregations see the same scores.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from rewards.server import RewardServer
from rl.config.load import load_config
from rl.data.source import TaskSource
from rl.evaluation.separability import plot_separability, separability
from rl.policies.lora import OLD, adapter_parameters, take_snapshot
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--groups", type=int, default=24)
    parser.add_argument("--save", type=Path, help="also keep images, hr, lr and scores as npz")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    config = load_config(ROOT / "configs" / "quickstart.yaml", options.overrides)
    torch.set_num_threads(config.rollout.threads)
    worker = RolloutWorker(config)
    worker.install(take_snapshot(adapter_parameters(worker.policy.backbone, OLD), 0))
    source = TaskSource(config.data, config.seed)
    servers = [RewardServer(reward) for reward in config.rewards]
    tasks = [source.task(ordinal) for ordinal in range(options.groups)]
    groups = [worker.rollout(task, member_seeds(config.seed, task.ordinal, MEMBERS))[1] for task in tasks]
    scores = np.stack(
        [
            np.stack([server.score([task], [group])[0].scores for server in servers], axis=1)
            for task, group in zip(tasks, groups, strict=True)
        ]
    )
    if options.save is not None:
        hr = np.stack([task.hr for task in tasks if task.hr is not None])
        lr = np.stack([task.lr for task in tasks])
        np.savez(options.save, images=np.stack([group.images for group in groups]), hr=hr, lr=lr, scores=scores)
    weights = np.array([reward.weight for reward in config.rewards])
    scales = np.array([reward.scale for reward in config.rewards])
    how = config.advantage
    rows = separability(scores, weights, scales, std_floor=how.std_floor, eps=how.eps)
    plot_separability(options.out, rows)
    print("| aggregation | G | distinct levels | mean pairwise gap | largest gap |\n|---|---|---|---|---|")
    for row in rows:
        levels, mean, largest = f"{row.distinct_levels:.2f}", f"{row.mean_gap:.3f}", f"{row.max_gap:.3f}"
        print(f"| {row.aggregation} | {row.group_size} | {levels} | {mean} | {largest} |")


if __name__ == "__main__":
    main()
