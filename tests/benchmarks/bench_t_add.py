"""What t_add trades at inference (GDPO-SR, Table 10): scores of held-out crops by noise level, a curve and a sheet.

    uv run python tests/benchmarks/bench_t_add.py OUT_FOLDER [--lora adapter.safetensors] [--policy mini] [--smoke]

All noise levels see the same noise for the same crop, as in the paper. psnry, ssim and LPIPS need the photograph, PIQE
and CNNIQA do not; `spread` is the standard deviation of psnry between the samples of a crop.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bench_gdpo_tables import FULL, SMOKE, held_out, judge
from gdpo_judge import Judge
from safetensors.torch import load_file

from rl.evaluation.sheets import Cell, ContactRow, bicubic_upscale, write_contact_sheet
from rl.types import F64, SRTask

matplotlib.use("Agg")
LEVELS = (50, 100, 150, 200, 250, 300, 350, 400, 450)
SHOWN = (150, 250, 350)
DRAWS = 4


def curve(path: Path, table: dict[int, F64], names: tuple[str, ...]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names) + 1, figsize=(2.7 * (len(names) + 1), 2.9), layout="constrained")
    spread = [values[..., 0].std(1, ddof=1).mean() for values in table.values()]
    lines = [[values[..., k].mean() for values in table.values()] for k in range(len(names))]
    for axis, line, name in zip(axes, [*lines, spread], [*names, "spread of psnry"], strict=True):
        axis.plot(list(table), line, marker="o", ms=3)
        for t_add in SHOWN:
            axis.axvline(t_add, color="0.85", lw=1, zorder=0)
        better = {"lpips": " (lower is better)", "spread of psnry": ""}.get(name, " (higher is better)")
        axis.set_title(name + better, fontsize=8)
        axis.set_xlabel("t_add", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def sheet(path: Path, court: Judge, tasks: Sequence[SRTask]) -> None:
    """Two samples at each of the paper's three levels, for six crops."""
    columns = ["LR", "bicubic", *(f"t_add {t}, seed {k}" for t in SHOWN for k in range(2)), "HR"]
    rows = []
    policies = {t: court.policy(t_add=t) for t in SHOWN}
    for task in tasks[min(4, len(tasks) // 2) :: max(1, len(tasks) // 6)][:6]:
        cells = [Cell(task.lr), Cell(bicubic_upscale(task.lr, task.scale))]
        for policy in policies.values():
            cells += [Cell(image) for image in court.draw(policy, task, 2)]
        rows.append(ContactRow(task.lr_id, (*cells, Cell(task.hr))))
    write_contact_sheet(path, columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lora", type=Path, help="an adapter that bench_gdpo_tables.py wrote")
    parser.add_argument("--policy", default="mini")
    parser.add_argument("--smoke", action="store_true", help="one crop at two levels")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    small = arguments.smoke
    court, tasks, levels = (
        judge(arguments.policy),
        held_out(SMOKE if small else FULL),
        LEVELS[1:4:2] if small else LEVELS,
    )
    adapter = None if arguments.lora is None else load_file(arguments.lora)
    table = {t: court.scores(tasks, adapter, 2 if small else DRAWS, t_add=t) for t in levels}
    print(f"| t_add | {' | '.join(court.names)} | spread |\n|---|{'---|' * (len(court.names) + 1)}")
    for t_add, values in table.items():
        cells = " | ".join(f"{value:.4f}" for value in values.mean((0, 1)))
        print(f"| {t_add} | {cells} | {np.std(values[..., 0], axis=1, ddof=1).mean():.3f} |")
    curve(arguments.out / "t_add_curve.png", table, court.names)
    sheet(arguments.out / "t_add_sheet.png", court, tasks)


if __name__ == "__main__":
    main()
