"""Seconds of one training batch at ZeRO stages 0, 1 and 2; the default is the fastest of them.

    uv run python tests/benchmarks/bench_zero.py [--ranks 1] [--rounds 4]

Real Learners under gloo, the quickstart's sizes (one group a rank), random latents, one thread a rank.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rank_main(stage: int, ranks: int, rounds: int) -> None:
    """One rank: train `rounds` batches after a warm one; rank 0 prints the seconds of each."""
    import numpy as np

    from learner.learner import Learner
    from rl.config.load import load_config
    from rl.types import RolloutGroup, SRTask, TrainGroup

    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        [f"learner.zero_stage={stage}", f"learner.ranks={ranks}", f"train.groups_per_step={ranks}"],
    )
    learner = Learner(config)
    rng = np.random.default_rng(int(os.environ["RANK"]))
    size = config.rollout.group_size
    lr = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    seconds = []
    for version in range(rounds + 1):
        latents = rng.standard_normal((size, 64, 8, 8)).astype(np.float32)
        images = np.zeros((size, 3, 128, 128), np.uint8)
        group = RolloutGroup(version, "random", version, "", tuple(range(size)), latents, images)
        task = SRTask(version, "random", lr, None, 4, 0)
        seconds.append(learner.train([TrainGroup(task, group, rng.standard_normal(size))]).train_s)
    if os.environ["RANK"] == "0":
        print("seconds", *seconds[1:])


def measure(stage: int, ranks: int, rounds: int) -> list[float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, __file__, "--rank-of", str(ranks), "--stage", str(stage), "--rounds", str(rounds)]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    line = next(line for line in outputs[0].splitlines() if line.startswith("seconds"))
    return [float(value) for value in line.split()[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        rank_main(options.stage, options.rank_of, options.rounds)
        return
    print("| ranks | ZeRO stage | median s a batch | min | max |\n|---|---|---|---|---|")
    for stage in (0, 1, 2):
        seconds = measure(stage, options.ranks, options.rounds)
        spread = f"{statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f}"
        print(f"| {options.ranks} | {stage} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
