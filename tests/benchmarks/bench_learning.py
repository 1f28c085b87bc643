"""Benchmark 1: the quickstart in three seeds, judged on photographs that nothing was trained on.

    uv run python tests/benchmarks/bench_learning.py OUT_FOLDER [--seeds 0 1 2] [--smoke] [overrides ...]

Each seed is the quickstart's own command with its evaluation moved to 72 crops of six Kodak photographs and of the
quickstart's four. Prints, per seed, seconds (of the whole command, and of the steps alone), peak resident memory of the
whole process tree, and for each reward the paired change with its 95 % bootstrap interval (over crops, and over whole
photographs). Limits: 600 s, 6 GiB, both intervals above zero.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from harness import HELD_OUT, ROOT

from rl.evaluation.bootstrap import paired_bootstrap
from rl.evaluation.records import EVAL_FILE, read_eval
from rl.metrics import METRICS_FILE, Key


def run_seed(out: Path, seed: int, overrides: list[str]) -> tuple[float, float, float]:
    """(seconds, peak GiB of summed PSS, peak GiB of summed RSS) of one quickstart."""
    command = [
        sys.executable, "-m", "actors.cli", "train", "configs/quickstart.yaml", f"seed={seed}", f"run.dir={out}",
        f"eval.data.path=[{', '.join(HELD_OUT)}]", "eval.crops=72", *overrides,
    ]  # fmt: skip
    started = time.perf_counter()
    process = psutil.Popen(command, cwd=ROOT)
    peak_pss = peak_rss = 0.0
    while process.poll() is None:
        pss, rss = _memory(process)
        peak_pss, peak_rss = max(peak_pss, pss), max(peak_rss, rss)
        time.sleep(2.0)
    if process.returncode != 0:
        raise RuntimeError(f"seed {seed}: exit code {process.returncode}")
    return time.perf_counter() - started, peak_pss / 2**30, peak_rss / 2**30


def _memory(process: psutil.Process) -> tuple[float, float]:
    pss = rss = 0.0
    try:
        for one in [process, *process.children(recursive=True)]:
            info = one.memory_full_info()
            pss, rss = pss + info.pss, rss + info.rss
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    return pss, rss


def rows(out: Path, seed: int, seconds: float, pss: float, rss: float) -> list[str]:
    """One table row per reward."""
    records = read_eval(out / EVAL_FILE)
    start = {(r.crop_id, r.seed): r for r in records if r.phase == "start"}
    end = {(r.crop_id, r.seed): r for r in records if r.phase == "end"}
    pairs = sorted(start)
    photos = np.unique([start[pair].photo for pair in pairs], return_inverse=True)[1]
    lines = []
    for name in start[pairs[0]].scores:
        before = np.array([start[pair].scores[name] for pair in pairs])
        after = np.array([end[pair].scores[name] for pair in pairs])
        crops, whole = paired_bootstrap(before, after), paired_bootstrap(before, after, clusters=photos)
        lines.append(
            f"| {seed} | {name} | {before.mean():.4f} | {after.mean():.4f} | {crops.mean:+.4f} "
            f"[{crops.low:+.4f}, {crops.high:+.4f}] | [{whole.low:+.4f}, {whole.high:+.4f}] | {len(pairs)} | "
            f"{seconds:.0f} | {_step_seconds(out):.0f} | {pss:.2f} | {rss:.2f} |"
        )
    return lines


def _step_seconds(out: Path) -> float:
    steps = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    return sum(float(step.get(Key.TIME_STEP, 0.0)) for step in steps)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--smoke", action="store_true", help="two steps of two small groups, judged on two crops")
    options = parser.parse_intermixed_args(argv)
    if options.smoke:
        options.seeds = [0]
        options.overrides = [
            "train={steps: 2, groups_per_step: 2}", "rollout.group_size=2", "data.crop=64", "eval.data.crop=64",
            "eval.crops=2", *options.overrides,
        ]  # fmt: skip
    table = [
        "| seed | reward | before | after | change, 95 % over crops | over photographs | pairs | s | s in steps "
        "| PSS GiB | RSS GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in options.seeds:
        out = (options.out / f"seed{seed}").absolute()
        table += rows(out, seed, *run_seed(out, seed, options.overrides))
        print("\n".join(table), flush=True)


if __name__ == "__main__":
    main()
