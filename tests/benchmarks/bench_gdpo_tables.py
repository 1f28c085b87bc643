"""GDPO-SR's tables 5 to 8, 10 and 11 on the embedded naosd preset, three seeds, 95 % intervals.

    uv run python tests/benchmarks/bench_gdpo_tables.py OUT_FOLDER [--steps 40] [--only NAME ...] [--set KEY=VALUE ...]
        [--tables] [--smoke]

Trains and judges every variant that OUT_FOLDER does not hold yet (two processes may share the work by --only); with
--tables prints the tables and writes a plot. --set changes every variant's recipe and needs a folder of its own. Equal
budget: every variant sees the same LR images, steps, group size (but for table 7), adapter, optimiser and learning
rate.

The paper trains on 12 000 groups and tests on other images. 160 groups are far too few for that (held-out table),
so what an objective does is measured where it was applied: four LR images a seed, each seen once a step, judged by
50 new draws. Intervals are Student's over the three seeds, which differ more than images or draws do.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from bare_loop import BareLoop
from gdpo_judge import Judge
from harness import DATA, KODAK, ROOT, over_seeds
from PIL import Image
from safetensors.torch import load_file, save_file

from rewards.sections import PyiqaSection, PythonRewardSection
from rewards.server import RewardServer
from rl.config.load import load_config
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.evaluation.bootstrap import Interval
from rl.objectives.lpips import Lpips
from rl.types import F64, SRTask

matplotlib.use("Agg")


@dataclass(frozen=True)
class Size:
    """How much is trained and judged."""

    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 4
    """LR images that a seed is trained on."""
    draws: int = 50
    """Of each trained image; the paper's table 8 averages 50 runs."""
    held_out: int = 48
    held_out_draws: int = 2
    overrides: tuple[str, ...] = ()


FULL = Size()
SMOKE = Size((0, 1), 1, 6, 1, 1, ("train.groups_per_step=1", "rollout.group_size=2"))
DANCE = (
    "objective={type: grpo, clip: 1.0e-4, kl_weight: 0}",
    "rollout.sampler={solver: gaussian, std: 0.1}",
    "train.max_policy_lag=0",
)
MAP, ONE_NOISE = "advantage.spatial=map", "objective.noise=group"
MAPS: dict[str, tuple[str, ...]] = {
    "map1": (MAP,),
    "map1_cell": (MAP, "objective.judged=cell"),
    "map1_one_noise": (MAP, ONE_NOISE),
    "map2_one_noise": (MAP, "advantage.pool=2", ONE_NOISE),
    "map4_one_noise": (MAP, "advantage.pool=4", ONE_NOISE),
    "map4_cell_one_noise": (MAP, "advantage.pool=4", "objective.judged=cell", ONE_NOISE),
    "dpo_latents": (MAP, "advantage.pool=4", "objective={type: diffusion_dpo, stitched: latents}"),
    "dpo_pixels": (MAP, "advantage.pool=4", "objective={type: diffusion_dpo, stitched: pixels}"),
}
"""Advantages per cell; the number is `advantage.pool`."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "gdpo": (),
    "diffusion_dpo": ("objective={type: diffusion_dpo, beta: 5000, sample_from: reference}",),
    "dance_grpo": DANCE,
    "g4": ("rollout.group_size=4",),
    "g8": ("rollout.group_size=8",),
    "fr_only": ("advantage.detail_share=0",),
    "nr_only": ("advantage.detail_share=1",),
    "fixed": ("advantage.detail_share=0.5",),
    "t_add": ("rollout.sampler={solver: one_step, t_add_range: [150, 350]}",),
    "one_noise": (ONE_NOISE,),
    **MAPS,
}
NAMES = {
    "gdpo": "GDPO: G = 6, noise, ARF", "diffusion_dpo": "5: Diffusion-DPO", "dance_grpo": "5: DanceGRPO (forced)",
    "one_noise": "(ours) GDPO, one noise a group", "fr_only": "6: FR only", "nr_only": "6: NR only",
    "fixed": "6: fixed 0.5", "g4": "7: G = 4", "g8": "7: G = 8", "t_add": "11: groups by t_add 150..350",
    "map1": "map, cells of 1", "map1_cell": "map, cells of 1, judged by cell", "map1_one_noise": "map, 1, one noise",
    "map2_one_noise": "map, 2, one noise", "map4_one_noise": "map, 4, one noise",
    "map4_cell_one_noise": "map, 4, by cell, one noise", "dpo_latents": "Diffusion-DPO, map, 4, stitched latents",
    "dpo_pixels": "Diffusion-DPO, map, 4, stitched pixels",
}  # fmt: skip
"""The number is the paper's table."""


def recipe(name: str, seed: int, steps: int, *more: str, size: Size = FULL) -> RunConfig:
    overrides = ["learner.ranks=1", f"train.steps={steps}", f"seed={seed}", f"eval.data.path=[{', '.join(KODAK)}]"]
    return load_config(ROOT / "configs" / "gdpo_sr_mini.yaml", [*overrides, *VARIANTS[name], *size.overrides, *more])


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """`--set`, of every variant's recipe."""
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of every variant, over its own")


def lr_images(out: Path, seed: int, size: Size) -> str:
    """The override that trains on fixed pairs, which are written when they are not there."""
    folder = out / f"images-{seed}"
    for part in ("lr", "hr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    source = TaskSource(recipe("gdpo", seed, 1).data, seed)
    for i in range(size.images):
        task = source.task(i)
        assert task.hr is not None
        for part, image in (("lr", task.lr), ("hr", task.hr)):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / part / f"{seed}-{i}.png")
    return f"data={{kind: paired, path: ['{folder}/lr'], hr_path: '{folder}/hr'}}"


def train(out: Path, name: str, seed: int, steps: int, size: Size, overrides: Sequence[str]) -> None:
    """One variant's EMA adapter, written when it is whole."""
    file = out / f"{name}-{seed}.safetensors"
    if file.is_file():
        return
    started = time.perf_counter()
    loop = BareLoop(recipe(name, seed, steps, lr_images(out, seed, size), *overrides, size=size))
    loop.run()
    save_file(loop.ema.tensors, file)
    print(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)


def judge(policy: str = "mini") -> Judge:
    """Of the reward: psnry and piqe. Outside it: ssim, CNNIQA (no reference) and LPIPS-squeeze."""
    config = recipe("gdpo", 0, 1, f"policy.path={policy}")
    cnniqa = PythonRewardSection(name="cnniqa", file=str(Path(__file__).with_name("cnniqa.py")))
    extra = [PyiqaSection(name="ssim"), cnniqa]
    weights = DATA / "weights" / "lpips"
    lpips = Lpips(weights / "squeezenet1_1_features.pth", weights / "lin_v0.1_squeeze.pth")
    return Judge(config, lpips, [RewardServer(reward) for reward in (*config.rewards, *extra)])


def held_out(size: Size = FULL) -> list[SRTask]:
    config = recipe("gdpo", 0, 1)
    assert config.eval is not None
    return TaskSource(config.eval.data, 0).grid(size.held_out)


def trained_on(out: Path, seed: int, size: Size) -> list[SRTask]:
    source = TaskSource(recipe("gdpo", seed, 1, lr_images(out, seed, size)).data, seed)
    return sorted((source.task(i) for i in range(size.images)), key=lambda task: task.lr_id)


@dataclass(frozen=True)
class Judged:
    """Means over draws `[seeds, images, metrics]`, without (before) and with the adapter."""

    before: F64
    after: F64

    def change(self, metric: int) -> Interval:
        """Mean over images, paired by image and drawn noise; Student's interval over the seeds of training."""
        return over_seeds((self.after - self.before)[..., metric].mean(1))

    def against(self, other: "Judged") -> "Judged":
        return Judged(other.after, self.after)


def judged(out: Path, court: Judge, name: str, size: Size, *, on_trained: bool) -> Judged:
    draws = size.draws if on_trained else size.held_out_draws
    sides: dict[str, list[F64]] = {"base": [], name: []}
    for seed in size.seeds:
        tasks = trained_on(out, seed, size) if on_trained else held_out(size)
        for side, means in sides.items():
            kept = out / (f"{side}-{seed}-trained.npy" if on_trained else f"{side}-{seed}-held-out.npy")
            if not kept.is_file():
                adapter = None if side == "base" else load_file(out / f"{side}-{seed}.safetensors")
                np.save(kept, court.scores(tasks, adapter, draws))
            means.append(np.load(kept).mean(1))
    return Judged(np.stack(sides["base"]), np.stack(sides[name]))


def table(title: str, models: dict[str, Judged], names: Sequence[str], *, base: bool = True) -> list[str]:
    """Values of the base, unless left out, then each variant's change with its interval."""
    lines = [f"**{title}**", "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    if base:
        before = next(iter(models.values())).before.mean((0, 1))
        lines.append(f"| NAOSD mini | {' | '.join(f'{value:.4f}' for value in before)} |")
    for label, model in models.items():
        changes = [model.change(k) for k in range(len(names))]
        cells = [f"{c.mean:+.4f} [{c.low:+.4f}, {c.high:+.4f}]" for c in changes]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def best_of_six(out: Path, names: Sequence[str], size: Size) -> list[str]:
    """What choosing the best of six draws of the base by one metric would add to it: the scale of all changes."""
    draws = np.concatenate([np.load(out / f"base-{seed}-trained.npy") for seed in size.seeds])
    sixes = draws[:, : size.draws // 6 * 6].reshape(len(draws), -1, 6, len(names))
    lower = np.array([name == "lpips" for name in names])
    gains = np.where(lower, sixes.min(2), sixes.max(2)).mean((0, 1)) - sixes.mean((0, 1, 2))
    shown = ", ".join(f"{name} {gain:+.4f}" for name, gain in zip(names, gains, strict=True))
    return [f"Best of six draws of NAOSD mini by each metric alone, less the mean; trained on: {shown}", ""]


def t_add_table(out: Path, court: Judge, size: Size) -> list[str]:
    """Table 10: a trained model at three noise levels, on the images of seed 0."""
    lines = ["**Table 10, t_add at inference, GDPO of seed 0**", "", f"| t_add | {' | '.join(court.names)} |"]
    lines.append(f"|---|{'---|' * len(court.names)}")
    adapter = load_file(out / "gdpo-0.safetensors")
    for t_add in (150, 250, 350):
        means = court.scores(trained_on(out, 0, size), adapter, size.draws, t_add=t_add).mean((0, 1))
        lines.append(f"| {t_add} | {' | '.join(f'{value:.4f}' for value in means)} |")
    return [*lines, ""]


def plot(path: Path, models: dict[str, Judged], names: Sequence[str]) -> None:
    """One panel per metric: every variant's change with its interval."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 4.2), sharey=True, layout="constrained")
    for k, (axis, metric) in enumerate(zip(axes, names, strict=True)):
        for row, model in enumerate(models.values()):
            c = model.change(k)
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
    figure.suptitle("Change against NAOSD mini on the images trained on, 95 % interval over seeds", fontsize=10)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    published = [name for name in VARIANTS if name not in MAPS]
    parser.add_argument("--only", nargs="*", default=published, choices=list(VARIANTS))
    add_overrides(parser)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one step of GDPO on one image of two seeds, all tables")
    arguments = parser.parse_args(argv)
    size = FULL
    if arguments.smoke:
        size, arguments.only, arguments.steps, arguments.tables = SMOKE, ["gdpo"], 1, True
    torch.set_num_threads(1)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    court = judge()
    for name in arguments.only:
        for seed in size.seeds:
            train(out, name, seed, arguments.steps, size, arguments.set)
        judged(out, court, name, size, on_trained=True)
        judged(out, court, name, size, on_trained=False)
    if not arguments.tables:
        return
    names = arguments.only
    trained, unseen = (
        {NAMES[name]: judged(out, court, name, size, on_trained=on_trained) for name in names}
        for on_trained in (True, False)
    )
    parts = []
    for heading, models in (("trained on", trained), ("held out", unseen)):
        parts.append(table(f"Change against NAOSD mini; {heading}", models, court.names))
        gdpo, *others = models.items()
        less = {name: gdpo[1].against(model) for name, model in others}
        parts.append(table(f"GDPO less each other variant; {heading}", less, court.names, base=False))
    parts.append(best_of_six(out, court.names, size))
    if "gdpo" in names:
        parts.append(t_add_table(out, court, size))
    print("\n".join(line for part in parts for line in part))
    plot(out / "gdpo_tables.png", trained, court.names)


if __name__ == "__main__":
    main()
