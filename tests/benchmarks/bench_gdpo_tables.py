"""GDPO-SR's tables 5 to 8, 10 and 11 on the embedded naosd preset, three seeds, 95 % intervals.

    uv run python tests/benchmarks/bench_gdpo_tables.py OUT_FOLDER [--steps 40] [--only NAME ...] [--tables]

Trains and judges on held-out crops every variant that OUT_FOLDER does not hold yet (two processes may share the work by
--only); with --tables prints the tables and writes a plot. Equal budget: every variant sees the
same photographs, steps, group size (but for table 7), adapter, optimiser and learning rate.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from gdpo_loop import GDPOLoop, Judge
from safetensors.torch import load_file, save_file

from rewards.server import RewardServer
from rl.config.load import load_config
from rl.config.reward import RewardConfig
from rl.config.run import RunConfig
from rl.evaluation.bootstrap import Interval, paired_bootstrap
from rl.perceptual import Lpips
from rl.types import F64

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SEEDS = (0, 1, 2)
DRAWS = 4
MANY_DRAWS, MANY_CROPS = 50, 24
"""Of table 8; the paper averages 50 runs."""
HELD_OUT = [str(DATA / "hr_photos" / "kodak" / f"kodim{i:02d}.png") for i in (3, 6, 10, 17, 20, 24)]
DANCE = (
    "objective={type: grpo, clip: 1.0e-4, kl_weight: 0}",
    "rollout.sampler={solver: sde, sde: {one_step_std: 0.1}}",
    "train.max_policy_lag=0",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "gdpo": (),
    "diffusion_dpo": ("objective={type: diffusion_dpo, beta: 5000, sample_from: reference}",),
    "dance_grpo": DANCE,
    "g4": ("rollout.group_size=4",),
    "g8": ("rollout.group_size=8",),
    "fr_only": ("advantage.detail_share=0",),
    "nr_only": ("advantage.detail_share=1",),
    "fixed": ("advantage.detail_share=0.5",),
    "t_add": ("rollout.vary=t_add",),
}
TABLES = {
    "Table 5, objectives": ("diffusion_dpo", "dance_grpo", "gdpo"),
    "Table 6, reward": ("fr_only", "nr_only", "fixed", "gdpo"),
    "Table 7, group size": ("g4", "gdpo", "g8"),
    "Table 11, what members differ by": ("t_add", "gdpo"),
}
NAMES = {
    "gdpo": "GDPO, G = 6, noise, ARF", "diffusion_dpo": "Diffusion-DPO", "dance_grpo": "DanceGRPO (forced)",
    "g4": "G = 4", "g8": "G = 8", "fr_only": "ARF, FR only", "nr_only": "ARF, NR only", "fixed": "ARF, fixed 0.5",
    "t_add": "groups by t_add 150..350",
}  # fmt: skip


def recipe(name: str, seed: int, steps: int, *more: str) -> RunConfig:
    overrides = ["learner.ranks=1", f"train.steps={steps}", f"seed={seed}", f"eval.data.path=[{', '.join(HELD_OUT)}]"]
    return load_config(ROOT / "configs" / "gdpo_sr_mini.yaml", [*overrides, *VARIANTS[name], *more])


def train(out: Path, name: str, seed: int, steps: int) -> None:
    """One variant's EMA adapter, written when it is whole."""
    file = out / f"{name}-{seed}.safetensors"
    if file.is_file():
        return
    started = time.perf_counter()
    loop = GDPOLoop(recipe(name, seed, steps))
    means = loop.run()
    save_file(loop.ema, file)
    np.save(out / f"{name}-{seed}.npy", means)
    print(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)


def judge(policy: str = "mini", crops: int = 48) -> Judge:
    """Of the reward: psnry and piqe. Outside it: ssim, CNNIQA (no reference) and LPIPS-squeeze."""
    config = recipe("gdpo", 0, 1, f"policy.path={policy}", f"eval.crops={crops}")
    cnniqa = RewardConfig(name="cnniqa", type="python", file=str(Path(__file__).with_name("cnniqa.py")))
    extra = [RewardConfig(name="ssim", type="pyiqa"), cnniqa]
    weights = DATA / "weights" / "lpips"
    lpips = Lpips(weights / "squeezenet1_1_features.pth", weights / "lin_v0.1_squeeze.pth")
    return Judge(config, lpips, [RewardServer(reward) for reward in (*config.rewards, *extra)])


@dataclass(frozen=True)
class Judged:
    """Per-crop means of one model, `[crops, metrics]`, one per seed of training."""

    seeds: tuple[F64, ...]

    def change(self, base: F64, metric: int) -> Interval:
        """Against the base, paired by crop and drawn noise; crops of all seeds are resampled together."""
        after = np.stack([one[:, metric] for one in self.seeds])
        before = np.broadcast_to(base[:, metric], after.shape)
        crops = np.broadcast_to(np.arange(after.shape[1]), after.shape)
        return paired_bootstrap(before.ravel(), after.ravel(), clusters=crops.ravel())


def judged(out: Path, court: Judge, name: str, draws: int) -> Judged:
    rows = []
    for seed in SEEDS:
        kept = out / f"{name}-{seed}-{draws}.npy"
        if not kept.is_file():
            np.save(kept, court.scores(load_file(out / f"{name}-{seed}.safetensors"), draws))
        rows.append(np.load(kept).mean(1))
    return Judged(tuple(rows))


def base_scores(out: Path, court: Judge, draws: int, **changes: int) -> F64:
    kept = out / f"base-{draws}-{changes.get('t_add', 250)}.npy"
    if not kept.is_file():
        np.save(kept, court.scores(None, draws, **changes))
    scores: F64 = np.load(kept)
    return scores


def table(title: str, base: F64, rows: dict[str, Judged], names: Sequence[str]) -> list[str]:
    """Base values, then each variant's change with its interval."""
    lines = [f"**{title}**", "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines.append(f"| NAOSD mini | {' | '.join(f'{value:.4f}' for value in base.mean(0))} |")
    for label, model in rows.items():
        changes = [model.change(base, k) for k in range(len(names))]
        cells = [f"{c.mean:+.4f} [{c.low:+.4f}, {c.high:+.4f}]" for c in changes]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def t_add_table(out: Path, court: Judge) -> list[str]:
    """Table 10: the trained model and the base at three noise levels."""
    lines = ["**Table 10, t_add at inference**", "", f"| | {' | '.join(court.names)} | std of psnry in a group |"]
    lines.append(f"|---|{'---|' * (len(court.names) + 1)}")
    for t_add in (150, 250, 350):
        scores = {"NAOSD mini": base_scores(out, court, DRAWS, t_add=t_add)}
        kept = out / f"gdpo-0-t{t_add}.npy"
        if not kept.is_file():
            np.save(kept, court.scores(load_file(out / "gdpo-0.safetensors"), DRAWS, t_add=t_add))
        scores["GDPO"] = np.load(kept)
        for label, values in scores.items():
            cells = " | ".join(f"{value:.4f}" for value in values.mean((0, 1)))
            lines.append(f"| {label}, t_add {t_add} | {cells} | {values[..., 0].std(1, ddof=1).mean():.3f} |")
    return [*lines, ""]


def plot(path: Path, base: F64, models: dict[str, Judged], names: Sequence[str]) -> None:
    """One panel per metric: every variant's change with its interval."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 4.2), sharey=True, layout="constrained")
    for k, (axis, metric) in enumerate(zip(axes, names, strict=True)):
        for row, model in enumerate(models.values()):
            c = model.change(base, k)
            better = c.mean < 0 if metric == "lpips" else c.mean > 0
            axis.errorbar(
                c.mean, row, xerr=[[c.mean - c.low], [c.high - c.mean]], fmt="o", color="C0" if better else "C3",
                capsize=3,
            )  # fmt: skip
        axis.axvline(0, color="0.6", lw=1)
        axis.set_title(f"{metric} ({'lower' if metric == 'lpips' else 'higher'} is better)", fontsize=9)
        axis.tick_params(axis="x", labelrotation=45, labelsize=8)
    axes[0].set_yticks(range(len(models)), list(models))
    axes[0].invert_yaxis()
    figure.suptitle("Change against NAOSD mini, 3 seeds, 95 % interval over held-out crops", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    court = judge()
    for name in arguments.only:
        for seed in SEEDS:
            train(out, name, seed, arguments.steps)
        judged(out, court, name, DRAWS)
    if not arguments.tables:
        return
    base = base_scores(out, court, DRAWS).mean(1)
    models = {name: judged(out, court, name, DRAWS) for name in VARIANTS}
    for title, members in TABLES.items():
        print("\n".join(table(title, base, {NAMES[m]: models[m] for m in members}, court.names)))
    few = judge(crops=MANY_CROPS)
    many = base_scores(out, few, MANY_DRAWS).mean(1)
    averaged = {NAMES["gdpo"]: judged(out, few, "gdpo", MANY_DRAWS)}
    print("\n".join(table(f"Table 8, {MANY_DRAWS} draws of {MANY_CROPS} crops", many, averaged, court.names)))
    print("\n".join(t_add_table(out, court)))
    plot(out / "gdpo_tables.png", base, {NAMES[name]: models[name] for name in VARIANTS}, court.names)


if __name__ == "__main__":
    main()
