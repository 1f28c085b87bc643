"""GDPO-SR, Diffusion-DPO and DanceGRPO on one crop, rewarded by PSNR(Y) alone: does each raise what it is asked to?

    uv run python tests/benchmarks/bench_gdpo_one_crop.py OUT_FOLDER [--steps 40] [--only NAME ...] [--figure PNG]

Three crops, one a seed, each trained on alone (four groups of six a step) and judged every ten steps by 32 new draws
with the same noise before and after: the figure shows the change of PSNR(Y) against the groups seen.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bench_gdpo_tables import NAMES, SEEDS, judge, recipe
from gdpo_loop import GDPOLoop, Judge

from rl.types import F64

matplotlib.use("Agg")
OBJECTIVES = ("gdpo", "one_noise", "diffusion_dpo", "dance_grpo")
EVERY, DRAWS = 10, 32
FIDELITY = "advantage.detail_share=0"


def changes(court: Judge, name: str, seed: int, steps: int) -> F64:
    """Change of every score against no adapter, after each `EVERY` steps `[points, draws, metrics]`."""
    loop = GDPOLoop(recipe(name, seed, steps, FIDELITY))
    crop = loop.source.task(0)
    before = court.scores([crop], None, DRAWS)[0]
    points = []
    for index in range(steps):
        loop.step_on([replace(crop, ordinal=ordinal) for ordinal in loop.ordinals(index)])
        if (index + 1) % EVERY == 0:
            points.append(court.scores([crop], loop.ema, DRAWS)[0] - before)
    return np.stack(points)


def plot(path: Path, results: dict[str, F64], groups: int) -> None:
    """One line per seed and objective: mean change of PSNR(Y) with the 95 % interval over draws."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for k, (name, table) in enumerate(results.items()):
        psnr = table[..., 0]
        x = EVERY * groups * np.arange(1, psnr.shape[1] + 1)
        half = 1.96 * psnr.std(2, ddof=1) / psnr.shape[2] ** 0.5
        for seed, (mean, bar) in enumerate(zip(psnr.mean(2), half, strict=True)):
            label = NAMES[name] if seed == 0 else None
            axis.errorbar(x, mean, bar, fmt="o-", color=f"C{k}", capsize=2, lw=1, ms=3, label=label)
    axis.axhline(0, color="0.6", lw=1)
    axis.set(xlabel="groups of six seen", ylabel="change of PSNR(Y), dB", title="One crop, rewarded by PSNR(Y) alone")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    court, results = judge(), {}
    for name in arguments.only:
        for seed in SEEDS:
            kept = out / f"one-crop-{name}-{seed}.npy"
            if not kept.is_file():
                np.save(kept, changes(court, name, seed, arguments.steps))
        results[name] = np.stack([np.load(out / f"one-crop-{name}-{seed}.npy") for seed in SEEDS])
        for point, means in enumerate(results[name].mean(2).transpose(1, 0, 2)):
            row = " | ".join(
                f"{metric} {' '.join(f'{v:+.3f}' for v in means[:, k])}" for k, metric in enumerate(court.names)
            )
            print(f"{NAMES[name]} after {EVERY * (point + 1)} steps, per seed: {row}", flush=True)
    if arguments.figure:
        plot(arguments.figure, results, recipe("gdpo", 0, 1).train.groups_per_step)


if __name__ == "__main__":
    main()
