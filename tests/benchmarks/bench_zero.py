"""Seconds of one training batch at ZeRO stages 0, 1 and 2; the default is the fastest of them.

    uv run python tests/benchmarks/bench_zero.py [--ranks 1] [--rounds 4] [--smoke]

Real Learners under gloo, the quickstart's sizes (one group a rank), random latents, one thread a rank.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from harness import ROOT, be_the_only_rank, free_port, rank_environment


def one_rank(stage: int, ranks: int, rounds: int, members: int = 12) -> list[float]:
    """Seconds of `rounds` batches after a warm one; RANK and the others are set."""
    import numpy as np

    from learner.learner import Learner
    from rl.config.load import load_config
    from rl.types import RolloutGroup, SRTask, TrainGroup

    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        [
            f"learner.zero_stage={stage}",
            f"learner.ranks={ranks}",
            f"train.groups_per_step={ranks}",
            f"rollout.group_size={members}",
            "advantage.spatial=off",
        ],
    )
    learner = Learner(config)
    rng = np.random.default_rng(int(os.environ["RANK"]))
    size = config.rollout.group_size
    lr = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    seconds = []
    for version in range(rounds + 1):
        latents = rng.standard_normal((size, 64, 8, 8)).astype(np.float32)
        images = np.zeros((size, 3, 128, 128), np.uint8)
        group = RolloutGroup(version, "random", version, "", (*range(size),), latents, images)
        task = SRTask(version, "random", lr, None, 4, 0)
        seconds.append(learner.train([TrainGroup(task, group, rng.standard_normal(size))]).train_s)
    return seconds[1:]


def measure(stage: int, ranks: int, rounds: int) -> list[float]:
    port, processes = free_port(), []
    for rank in range(ranks):
        env = os.environ | rank_environment(rank, ranks, port)
        command = [sys.executable, __file__, "--rank-of", str(ranks), "--stage", str(stage), "--rounds", str(rounds)]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    line = next(line for line in outputs[0].splitlines() if line.startswith("seconds"))
    return [float(value) for value in line.split()[1:]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="one batch of two members, all in this process")
    options = parser.parse_args(argv)
    if options.rank_of:
        import torch.distributed

        print("seconds", *one_rank(options.stage, options.rank_of, options.rounds), flush=True)
        torch.distributed.destroy_process_group()  # gloo's threads that still run when Python ends can abort it
        return
    if options.smoke:
        be_the_only_rank()
    print("| ranks | ZeRO stage | median s a batch | min | max |\n|---|---|---|---|---|")
    for stage in (0, 1, 2):
        small = options.smoke
        seconds = one_rank(stage, 1, 1, 2) if small else measure(stage, options.ranks, options.rounds)
        spread = f"{statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f}"
        print(f"| {options.ranks} | {stage} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
