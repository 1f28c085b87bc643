"""How much of an objective's gradient is signal, and what a step along it does to the reward; naosd mini, one crop.

    uv run python tests/benchmarks/bench_gdpo_gradients.py OUT_FOLDER [--groups 64] [--only NAME ...]

No optimiser: at the start the gradients of many groups are averaged, with PSNR(Y) as the only reward.

split-half   cosine between the means of the even and of the odd groups; 0 is noise
at rms r     change of PSNR(Y) and LPIPS over 32 new draws, LoRA's B moved against the mean gradient to that rms
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_gdpo_curves import FIDELITY, ONE_CROP_DRAWS
from bench_gdpo_tables import NAMES, SEEDS, judge, recipe
from gdpo_loop import Adapter, GDPOLoop, Judge

from rl.batch_advantages import batch_advantages
from rl.seeding import member_seeds
from rl.types import F64, SRTask, TrainGroup

VARIANTS = ("gdpo", "one_noise", "diffusion_dpo", "dance_grpo", "t_add")
RMS = (1e-4, 3e-4, 1e-3)


def mean_gradients(loop: GDPOLoop, crop: SRTask, groups: int) -> list[Adapter]:
    """Mean gradients of the even and the odd groups, by parameter."""
    sums: list[Adapter] = [{name: torch.zeros_like(p) for name, p in loop.theta.items()} for _ in range(2)]
    for ordinal in range(groups):
        task = replace(crop, ordinal=ordinal)
        seeds = member_seeds(loop.config.seed, ordinal, loop.config.rollout.group_size)
        group = loop.rollout(task, seeds)
        advantages = batch_advantages(loop.config, loop.score([task], [group]), [task]).advantages[0]
        for batch in loop.objective.micro_batches([TrainGroup(task, group, advantages)], 0):
            loop.objective(batch).total.backward()
        for name, parameter in loop.theta.items():
            if parameter.grad is not None:
                sums[ordinal % 2][name] += parameter.grad * 2 / groups
                parameter.grad = None
    return sums


def measured(court: Judge, loop: GDPOLoop, groups: int) -> F64:
    """split-half, then the changes of every score at each rms `[1 + len(RMS) * metrics]`."""
    crop = loop.source.task(0)
    even, odd = mean_gradients(loop, crop, groups)
    a, b = (torch.cat([g.flatten() for g in half.values()]).double() for half in (even, odd))
    mean = {name: (even[name] + odd[name]) / 2 for name in even}
    # at the start B is 0 and A has no gradient
    moved = [name for name, g in mean.items() if g.abs().max() > 0]
    rms = torch.cat([mean[name].flatten() for name in moved]).square().mean().sqrt()
    before = court.scores([crop], None, ONE_CROP_DRAWS)
    changes = []
    for size in RMS:
        adapter = {name: p.detach() - mean[name] * size / rms for name, p in loop.theta.items()}
        changes.append((court.scores([crop], adapter, ONE_CROP_DRAWS) - before).mean((0, 1)))
    return np.concatenate([[float(a @ b / (a.norm() * b.norm()))], *changes])


def row(name: str, table: F64, names: Sequence[str]) -> str:
    """`table` `[seeds, 1 + len(RMS) * metrics]`: one value per seed in a cell."""
    moves = table[:, 1:].reshape(len(table), len(RMS), len(names))
    cells = [" ".join(f"{value:+.3f}" for value in table[:, 0])]
    for metric in (names.index("psnry"), names.index("lpips")):
        cells += [" ".join(f"{value:+.3f}" for value in moves[:, k, metric]) for k in range(len(RMS))]
    return f"| {NAMES[name]} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    court = judge()
    titles = [f"{metric} at rms {size:g}" for metric in ("psnry", "lpips") for size in RMS]
    print(f"| | split-half | {' | '.join(titles)} |\n|---|---|{'---|' * len(titles)}", flush=True)
    for name in arguments.only:
        rows = []
        for seed in SEEDS:
            kept = out / f"gradient-{name}-{seed}.npy"
            if not kept.is_file():
                np.save(kept, measured(court, GDPOLoop(recipe(name, seed, 1, FIDELITY)), arguments.groups))
            rows.append(np.load(kept))
        print(row(name, np.stack(rows), court.names), flush=True)


if __name__ == "__main__":
    main()
