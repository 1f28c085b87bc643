"""Benchmark 2: images a second of the quickstart's loop with some values of max_policy_lag, and of the bare loop.

    uv run python tests/benchmarks/bench_overlap.py [--steps 6] [--rounds 2] [--lags 1 0] [--smoke] [overrides ...]

They run one after another, in turns, with the same mathematics, sizes and seeds (the bare loop on two threads).
Start-up, evaluation and the first two steps, which fill the pipeline, are left out. Limit: lag 1 at least equal to the
bare loop.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT

WARM_STEPS = 2


def run_isrl(lag: int, steps: int, overrides: list[str]) -> list[float]:
    """images/s of each step after the warm ones."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "actors.cli", "train", "configs/quickstart.yaml", f"run.dir={folder}/run",
            f"train.max_policy_lag={lag}", f"train.steps={steps}", "eval=null", "checkpoint.every=100000",
            "monitor.sample_every=100000", *overrides,
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line).get("perf/images_per_s") for line in lines]
    return [value for value in values if value is not None][WARM_STEPS:]


def run_bare(steps: int, overrides: list[str]) -> list[float]:
    command = [
        sys.executable, "tests/benchmarks/bare_loop.py", "configs/quickstart.yaml", f"train.steps={steps}",
        "eval=null", "learner.threads=2", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    steps_printed = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    return [float(line.rsplit(", ", 1)[1].removesuffix(" images/s")) for line in steps_printed][WARM_STEPS:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lags", type=int, nargs="+", default=[1, 0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--smoke", action="store_true", help="three steps of two small groups, one round")
    options = parser.parse_intermixed_args(argv)
    if options.smoke:
        small = ["train.groups_per_step=2", "rollout.group_size=2", "data.crop=64", "eval=null"]
        options.steps, options.rounds, options.overrides = WARM_STEPS + 1, 1, [*small, *options.overrides]
    speeds: dict[str, list[float]] = {"bare": [], **{f"lag {lag}": [] for lag in options.lags}}
    for _ in range(options.rounds):
        speeds["bare"] += run_bare(options.steps, options.overrides)
        for lag in options.lags:
            speeds[f"lag {lag}"] += run_isrl(lag, options.steps, options.overrides)
    bare = statistics.median(speeds["bare"])
    for name, values in speeds.items():
        median = statistics.median(values)
        print(
            f"{name:6} median {median:.2f} images/s (min {min(values):.2f}, max {max(values):.2f}, n {len(values)}), "
            f"{median / bare:.2f} x bare"
        )


if __name__ == "__main__":
    main()
