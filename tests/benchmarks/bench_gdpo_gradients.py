"""GDPO-SR's comparisons without an optimiser's noise: the mean gradient of 64 groups of a crop, and a step against it.

    uv run python tests/benchmarks/bench_gdpo_gradients.py OUT_FOLDER {fidelity,recipe,maps} [--groups 64]
        [--only NAME ...] [--set advantage.spatial=map] [--smoke]

fidelity     PSNR(Y) is the only reward
recipe       psnr_y and PIQE, the attribute-aware reward of configs/gdpo_sr_mini.yaml
maps         PSNR(Y) alone, one advantage a member against one per cell

split-half   cosine between the mean gradients of the even and of the odd groups; 0 is noise
changes      of each score over 32 new draws of the crop when LoRA's B is moved against the mean gradient, to an rms of
             3e-4 as one step of AdamW at the recipe's lr; Student's 95 % interval over the crops, one a seed

What OUT_FOLDER holds is not repeated, so that two processes may share the work by --only; another --set needs a folder
of its own.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bare_loop import BareLoop
from bench_gdpo_curves import FIDELITY, ONE_CROP_DRAWS, SMOKE_DRAWS
from bench_gdpo_tables import FULL, MAPS, NAMES, SMOKE, Judged, add_overrides, judge, recipe, table
from gdpo_judge import Adapter, Judge
from harness import tables

from rl.types import F64, SRTask

matplotlib.use("Agg")
VARIANTS = {
    "fidelity": ("gdpo", "one_noise", "diffusion_dpo", "dance_grpo", "t_add", "g4", "g8"),
    "recipe": tuple(name for name in NAMES if name not in MAPS),
    "maps": ("gdpo", "one_noise", "diffusion_dpo", *MAPS),
}
RMS = (1e-4, 3e-4, 1e-3)


def mean_gradients(loop: BareLoop, crop: SRTask, groups: int) -> list[Adapter]:
    """Mean gradients of the even and the odd groups, by parameter."""
    sums: list[Adapter] = [{name: torch.zeros_like(p) for name, p in loop.theta.items()} for _ in range(2)]
    for ordinal in range(groups):
        task = replace(crop, ordinal=ordinal)
        group = loop.rollout(task)
        loop.backward(loop.items([task], [group], tables(loop.servers, [task], [group])))
        for name, parameter in loop.theta.items():
            if parameter.grad is not None:
                sums[ordinal % 2][name] += parameter.grad * 2 / groups
                parameter.grad = None
    return sums


def measured(court: Judge, loop: BareLoop, groups: int, draws: int) -> F64:
    """split-half, then the changes of every score at each rms `[1 + len(RMS) * metrics]`."""
    crop = loop.source.task(0)
    even, odd = mean_gradients(loop, crop, groups)
    a, b = (torch.cat([g.flatten() for g in half.values()]).double() for half in (even, odd))
    mean = {name: (even[name] + odd[name]) / 2 for name in even}
    # at the start B is 0 and A has no gradient
    moved = [name for name, g in mean.items() if g.abs().max() > 0]
    rms = torch.cat([mean[name].flatten() for name in moved]).square().mean().sqrt()
    before = court.scores([crop], None, draws)
    changes = []
    for size in RMS:
        adapter = {name: p.detach() - mean[name] * size / rms for name, p in loop.theta.items()}
        changes.append((court.scores([crop], adapter, draws) - before).mean((0, 1)))
    return np.concatenate([[float(a @ b / (a.norm() * b.norm()))], *changes])


def plot(path: Path, results: dict[str, F64], names: tuple[str, ...], title: str) -> None:
    """Mean change of PSNR(Y) and LPIPS against the step's length, one crop a thin line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for axis, metric in zip(axes, ("psnr_y", "lpips"), strict=True):
        for colour, (name, rows) in enumerate(results.items()):
            moves = rows[:, 1:].reshape(len(rows), len(RMS), len(names))[..., names.index(metric)]
            axis.plot(RMS, moves.T, color=f"C{colour}", lw=0.6, alpha=0.6)
            axis.plot(RMS, moves.mean(0), "o-", color=f"C{colour}", label=NAMES[name])
        axis.axhline(0, color="0.6", lw=1)
        direction = "lower" if metric == "lpips" else "higher"
        axis.set(xscale="log", xlabel="rms of LoRA's B", title=f"change of {metric} ({direction} is better)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("reward", choices=list(VARIANTS))
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=list(NAMES))
    parser.add_argument("--figure", type=Path)
    add_overrides(parser)
    parser.add_argument("--smoke", action="store_true", help="two groups of GDPO, two seeds")
    a = parser.parse_args(argv)
    size, draws = (SMOKE, SMOKE_DRAWS) if a.smoke else (FULL, ONE_CROP_DRAWS)
    if a.smoke:
        a.groups, a.only = 2, ["gdpo"]
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    court, results = judge(), {}
    kind = "recipe" if a.reward == "recipe" else "fidelity"
    for name in a.only or VARIANTS[a.reward]:
        rows = []
        for seed in size.seeds:
            kept = a.out / f"{kind}-{name}-{seed}.npy"
            if not kept.is_file():
                config = recipe(name, seed, 1, *([] if a.reward == "recipe" else [FIDELITY]), *a.set, size=size)
                np.save(kept, measured(court, BareLoop(config), a.groups, draws))
            rows.append(np.load(kept))
        results[name] = np.stack(rows)
        print(f"{NAMES[name]}: split-half {' '.join(f'{row[0]:+.3f}' for row in rows)}", flush=True)
    if a.figure:
        plot(
            a.figure, results, court.names, f"A step against the mean gradient of {a.groups} groups; reward: {a.reward}"
        )
    for k, rms in enumerate(RMS):
        first = 1 + k * len(court.names)
        moves = {name: rows[:, None, first : first + len(court.names)] for name, rows in results.items()}
        models = {NAMES[name]: Judged(np.zeros_like(move), move) for name, move in moves.items()}
        lines = table(f"{a.reward}, change at rms {rms:g}", models, court.names, base=False)
        if "gdpo" in moves:
            gdpo = models.pop(NAMES["gdpo"])
            less = {name: gdpo.against(model) for name, model in models.items()}
            lines += table(f"{a.reward}, GDPO less each other variant at rms {rms:g}", less, court.names, base=False)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
