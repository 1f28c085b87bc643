"""How far GDPO-SR, Diffusion-DPO and DanceGRPO come on naosd mini with the groups that they have seen.

    uv run python tests/benchmarks/bench_gdpo_curves.py OUT_FOLDER one_crop
    uv run python tests/benchmarks/bench_gdpo_curves.py OUT_FOLDER random_crops --steps 400 --every 100 --lr 1.0e-4
    ... --smoke

one_crop       One crop a seed, PSNR(Y) the only reward, judged by 32 new draws of it: does an objective raise what
               it is asked to raise?
random_crops   The recipe's photographs and reward, judged on 48 held-out crops with two draws: does that carry over?

What OUT_FOLDER holds is not repeated; --only and --seeds share the work among processes, --figure plots the curves.
--set changes every objective's recipe and needs a folder of its own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bare_loop import BareLoop
from bench_gdpo_tables import FULL, SMOKE, Size, add_overrides, held_out, judge, recipe
from gdpo_judge import Judge

from rl.types import F64

matplotlib.use("Agg")
OBJECTIVES = {"gdpo": "GDPO", "one_noise": "GDPO, one noise a group (ours)", "diffusion_dpo": "Diffusion-DPO",
              "dance_grpo": "DanceGRPO (forced)"}  # fmt: skip
ONE_CROP_DRAWS, SMOKE_DRAWS = 32, 2
FIDELITY = "advantage.detail_share=0"


def curve(court: Judge, loop: BareLoop, every: int, size: Size, *, one_crop: bool) -> F64:
    """Change of every score against no adapter, after each `every` steps `[points, crops, draws, metrics]`."""
    crop = loop.source.task(0)
    one_crop_draws = ONE_CROP_DRAWS if size is FULL else SMOKE_DRAWS
    judged, draws = ([crop], one_crop_draws) if one_crop else (held_out(size), size.held_out_draws)
    before = court.scores(judged, None, draws)
    points = []
    for index in range(loop.config.train.steps):
        if one_crop:
            loop.step_on([replace(crop, ordinal=ordinal) for ordinal in loop.ordinals(index)])
        else:
            loop.step(index)
        if (index + 1) % every == 0:
            points.append(court.scores(judged, loop.ema.tensors, draws) - before)
    return np.stack(points)


def rows(name: str, table: F64, every: int) -> list[str]:
    """One row per point: the mean change per seed of each metric; `table` `[seeds, points, crops, draws, metrics]`."""
    means = table.mean((2, 3)).transpose(1, 2, 0)
    return [
        f"| {OBJECTIVES[name]} | {every * (point + 1)} | "
        + " | ".join(" ".join(f"{value:+.3f}" for value in seeds) for seeds in metrics)
        + " |"
        for point, metrics in enumerate(means)
    ]


def plot(path: Path, results: dict[str, F64], groups: int, title: str) -> None:
    """One line per seed and objective: mean change of PSNR(Y), the 95 % interval over crops and draws as bars."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for k, (name, table) in enumerate(results.items()):
        psnr = table[..., 0].reshape(*table.shape[:2], -1)
        x = groups * np.arange(1, psnr.shape[1] + 1)
        half = 1.96 * psnr.std(2, ddof=1) / psnr.shape[2] ** 0.5
        for seed, (mean, bar) in enumerate(zip(psnr.mean(2), half, strict=True)):
            label = OBJECTIVES[name] if seed == 0 else None
            axis.errorbar(x, mean, bar, fmt="o-", color=f"C{k}", capsize=2, lw=1, ms=3, label=label)
    axis.axhline(0, color="0.6", lw=1)
    axis.set(xlabel="groups of six seen", ylabel="change of PSNR(Y), dB", title=title)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("on", choices=["one_crop", "random_crops"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--lr", default="3.0e-4")
    parser.add_argument("--only", nargs="*", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(FULL.seeds))
    parser.add_argument("--figure", type=Path)
    add_overrides(parser)
    parser.add_argument("--smoke", action="store_true", help="one step of GDPO, one seed")
    a = parser.parse_args(argv)
    size = FULL
    if a.smoke:
        size, a.steps, a.every, a.only, a.seeds = SMOKE, 1, 1, ["gdpo"], [0]
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    court, results, one_crop = judge(), {}, a.on == "one_crop"
    print(
        f"| {a.on}, lr {a.lr} | steps | {' | '.join(court.names)} |\n|---|---|{'---|' * len(court.names)}", flush=True
    )
    for name in a.only:
        for seed in a.seeds:
            kept = a.out / f"{a.on}-{name}-{seed}.npy"
            if not kept.is_file():
                changes = [f"learner.optimizer.lr={a.lr}", *([FIDELITY] if one_crop else []), *a.set]
                loop = BareLoop(recipe(name, seed, a.steps, *changes, size=size))
                np.save(kept, curve(court, loop, a.every, size, one_crop=one_crop))
        results[name] = np.stack([np.load(a.out / f"{a.on}-{name}-{seed}.npy") for seed in a.seeds])
        print("\n".join(rows(name, results[name], a.every)), flush=True)
    if a.figure:
        plot(a.figure, results, a.every * recipe("gdpo", 0, 1).train.groups_per_step, f"{a.on}, lr {a.lr}")


if __name__ == "__main__":
    main()
