"""What advantages per cell change for NFT: learning, what was never trained on, and diversity.

    uv run python tests/benchmarks/bench_spatial.py run OUT [--arms global pool1 ...] [--seeds 0 1 2] [--steps 48]
        [--at 4 8]
    uv run python tests/benchmarks/bench_spatial.py table OUT

The quickstart's recipe in one process (`lagged_loop.py`), judged by the EMA on crops of ten photographs that nothing
was trained on, eight samples each, after a third of the steps and at the end. OUT gets one file per run; a run that is
there already is not repeated, so several processes may share the work. `table` writes OUT/spatial.png and
OUT/sheet.png beside the rows that it prints.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from harness import HELD_OUT, ROOT, be_the_only_rank, over_seeds, scores
from lagged_loop import LaggedLoop
from watch import NAMES, Watch, diversity

from rl.config.load import load_config
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.evaluation.sheets import Cell, ContactRow, write_contact_sheet
from rl.types import F64, SRTask

matplotlib.use("Agg")
CROPS, SAMPLES, SHOWN = 30, 8, 6
OFF, MAP = ("advantage.spatial=off",), ("advantage.spatial=map",)
OWN = Path(__file__).with_name("local_rewards")


def _rewards(*more: str) -> str:
    """The quickstart's two rewards and others."""
    return f"rewards=[{{name: gmsd, type: pyiqa}}, {{name: lr_consistency, type: lr_consistency}}, {', '.join(more)}]"


def _own(name: str, keys: str = "") -> str:
    return f"{{name: {name}, type: python, file: '{OWN / name}.py'{keys}}}"


ARMS: Mapping[str, tuple[str, ...]] = {
    "global": OFF,
    "pool1": (*MAP, "advantage.pool=1"),
    "pool2": (*MAP, "advantage.pool=2"),
    "pool4": (*MAP, "advantage.pool=4"),
    # how it is done
    "cell_normaliser": (*MAP, "objective.normaliser=cell"),
    "half_local": (*MAP, "advantage.local_weight=0.5"),
    # where it hurts
    "noisy": (*MAP, f"rewards=[{{name: gmsd, type: pyiqa}}, {_own('noisy_lr')}]"),
    "colour_score": (*MAP, _rewards(_own("global_colour", ", map: false"))),
    "colour_map": (*MAP, _rewards(_own("global_colour"))),
    "lpips_global": (
        *OFF,
        f"rewards=[{_own('lpips_squeeze')}]",
    ),
    "lpips_map": (*MAP, f"rewards=[{_own('lpips_squeeze')}]"),
    "both_global": (
        *OFF,
        _rewards(_own("lpips_squeeze")),
    ),
    "both_map": (*MAP, _rewards(_own("lpips_squeeze"))),
    # what keeps diversity
    "kl": (*MAP, "objective.kl_weight=1.0"),
    "diversity": (*MAP, _rewards(_own("diversity", ", weight: 0.5"))),
    "hr_sharpness": (*MAP, _rewards(_own("hr_sharpness"))),
}
"""Arm -> its overrides of the quickstart. Cells of 8 are the whole crop, which is `global`."""
REWARDS = ("gmsd", "lr_consistency")
PLAIN = ("global", "pool1", "pool2", "pool4")
SMALL = ("train.groups_per_step=1", "rollout.group_size=2", "data.crop=64", "eval.data.crop=64")


@dataclass(frozen=True, eq=False)
class Judged:
    """The EMA on the held-out crops."""

    scores: F64
    """`[crops, samples, rewards + NAMES]`"""
    spread: F64
    """`[crops]`, `diversity` of each."""
    images: list[np.ndarray]
    """The first sample of some crops, `[3, H, W]`."""


def recipe(seed: int, steps: int, crops: int, *more: str) -> RunConfig:
    """The quickstart on one rank."""
    photos = [path for path in HELD_OUT if path.startswith("skimage:") or Path(path).is_file()]
    fixed = ["learner.ranks=1", "learner.threads=1", f"eval.crops={crops}", f"eval.data.path={photos}"]
    return load_config(ROOT / "configs" / "quickstart.yaml", [f"seed={seed}", f"train.steps={steps}", *fixed, *more])


def judge(loop: LaggedLoop, watch: Watch, samples: int) -> Judged:
    rows, spread, images = [], [], []
    held_out = loop.held_out(samples)
    for k, (task, group) in enumerate(held_out):
        rows.append(np.concatenate([scores(loop.servers, [task], [group])[0], watch.scores(task, group)], axis=1))
        spread.append(diversity(group.images))
        if k % max(1, len(held_out) // SHOWN) == 0:
            images.append(group.images[0])
    return Judged(np.stack(rows), np.array(spread), images)


def run(config: RunConfig, file: Path, judged_at: Sequence[int], samples: int) -> None:
    """One training run; `file` gets its scores, the pixels lie beside it."""
    loop, watch = LaggedLoop(config), Watch()
    found = {0: judge(loop, watch, samples)}
    started, learner_s = time.perf_counter(), []
    for s in range(config.train.steps):
        learner_s.append(loop.step(s))
        if s + 1 in judged_at:
            found[s + 1] = judge(loop, watch, samples)
    tasks: list[SRTask] = [task for task, _ in loop.held_out(1)]
    record = {
        "names": [*(reward.name for reward in config.rewards), *NAMES],
        "photos": [task.lr_id.partition("@")[0] for task in tasks],
        "scores": {str(step): np.round(one.scores, 6).tolist() for step, one in found.items()},
        "spread": {str(step): one.spread.tolist() for step, one in found.items()},
        "learner_s": learner_s,
        "wall_s": time.perf_counter() - started,
    }
    pixels = {str(step): np.stack(one.images) for step, one in found.items()}
    np.savez_compressed(file.with_suffix(".npz"), allow_pickle=False, **pixels)
    file.write_text(json.dumps(record), encoding="utf-8")


def _train(options: argparse.Namespace) -> None:
    be_the_only_rank()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    crops, samples, steps = (2, 2, 1) if options.smoke else (CROPS, SAMPLES, options.steps)
    for seed in options.seeds:
        for arm in options.arms or PLAIN:
            file = out / f"{arm}-{seed}.json"
            if file.is_file():
                continue
            config = recipe(seed, steps, crops, *ARMS[arm], *(SMALL if options.smoke else ()))
            run(config, file, sorted({max(1, steps // 3), steps, *options.at}), samples)
            print(f"{arm} seed {seed}: done", flush=True)


@dataclass(frozen=True, eq=False)
class Arm:
    """All runs of one arm, by seed."""

    records: list[Mapping[str, Any]]

    @property
    def names(self) -> list[str]:
        """Of the columns; the noisy map belongs to the reward's own score."""
        return [{"noisy_lr": "lr_consistency"}.get(name, name) for name in self.records[0]["names"]]

    def by_name(self, columns: F64) -> list[tuple[str, F64]]:
        return list(zip(self.names, columns, strict=True))

    def means(self, step: str) -> F64:
        """`[seeds, rewards + NAMES]`"""
        return np.array([np.mean(record["scores"][step], axis=(0, 1)) for record in self.records])

    def worst(self, step: str) -> F64:
        """The same of each crop's worst sample by each metric."""
        lower = np.array([name == "lpips" for name in self.records[0]["names"]])
        found = []
        for record in self.records:
            scores = np.array(record["scores"][step])
            found.append(np.where(lower, scores.max(axis=1), scores.min(axis=1)).mean(axis=0))
        return np.array(found)

    def spread(self, step: str) -> F64:
        """`[seeds]`"""
        return np.array([np.mean(record["spread"][step]) for record in self.records])


def arms(out: Path) -> dict[str, Arm]:
    """What OUT holds, in the order of `ARMS`."""
    found = {}
    for name in ARMS:
        files = sorted(out.glob(f"{name}-*.json"))
        if files:
            found[name] = Arm([json.loads(file.read_text(encoding="utf-8")) for file in files])
    return found


def rows(found: Mapping[str, Arm]) -> list[str]:
    """Start, then every arm's change after each number of steps, Student's interval over seeds; a cell is empty where
    the arm does not measure a column."""
    names = list(dict.fromkeys([*REWARDS, *(name for arm in found.values() for name in arm.names)]))
    lines = [f"| | seeds | steps | {' | '.join(names)} | spread | worst of 8: {', '.join(REWARDS)} |"]
    lines.append(f"|---|---|---|{'---|' * (len(names) + 2)}")
    start = {name: f"{value:.4f}" for arm in found.values() for name, value in arm.by_name(arm.means("0").mean(axis=0))}
    first = next(iter(found.values()))
    worst = ", ".join(f"{value:.4f}" for name, value in first.by_name(first.worst("0").mean(axis=0)) if name in REWARDS)
    cells = " | ".join(start.get(name, "") for name in names)
    lines.append(f"| start | | 0 | {cells} | {first.spread('0').mean():.2f} | {worst} |")
    for name, arm in found.items():
        for step in [step for step in arm.records[0]["scores"] if step != "0"]:
            shown = {column: _change(c) for column, c in arm.by_name((arm.means(step) - arm.means("0")).T)}
            changes = arm.by_name((arm.worst(step) - arm.worst("0")).mean(axis=0))
            worst = ", ".join(f"{c:+.4f}" for column, c in changes if column in REWARDS)
            cells = " | ".join(shown.get(column, "") for column in names)
            spread = arm.spread(step).mean()
            lines.append(f"| {name} | {len(arm.records)} | {step} | {cells} | {spread:.2f} | {worst} |")
    return lines


def _change(by_seed: F64) -> str:
    """One seed has no interval."""
    if len(by_seed) == 1:
        return f"{by_seed[0]:+.4f}"
    c = over_seeds(by_seed)
    return f"{c.mean:+.4f} [{c.low:+.4f}, {c.high:+.4f}]"


def plot(path: Path, found: Mapping[str, Arm]) -> None:
    """Each metric over LR consistency: what an arm pays for the same gain. One seed a thin line."""
    import matplotlib.pyplot as plt

    shown = ["gmsd", "psnr_y", "ssim_y", "lpips", "cnniqa", "piqe", "sharpness", "spread"]
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.2), layout="constrained")
    both = {name: arm for name, arm in found.items() if {*REWARDS} <= {*arm.names}}
    for axis, metric in zip(axes.flat, shown, strict=True):
        for colour, (name, arm) in enumerate(both.items()):
            x, y = (
                np.stack([
                    arm.spread(step) if what == "spread" else arm.means(step)[:, arm.names.index(what)]
                    for step in arm.records[0]["scores"]
                ]) for what in ("lr_consistency", metric)
            )  # fmt: skip
            axis.plot(x, y, color=f"C{colour}", lw=0.6, alpha=0.5)
            axis.plot(x.mean(axis=1), y.mean(axis=1), "o-", color=f"C{colour}", label=name)
        axis.set_title(metric + {"lpips": " (lower is better)", "sharpness": "", "spread": ""}.get(metric, " (higher)"))
        axis.set_xlabel("LR consistency, dB", fontsize=8)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(found)))
    figure.savefig(path, dpi=110)


def sheet(path: Path, out: Path, found: Mapping[str, Arm], step: str) -> None:
    """LR, start, the arms after `step` steps and HR, the first sample of some crops of seed 0."""
    kept = {name: np.load(out / f"{name}-0.npz") for name in found}
    section = recipe(0, 1, CROPS).eval
    assert section is not None
    tasks = TaskSource(section.data, 0).grid(CROPS)
    shown = [task for k, task in enumerate(tasks) if k % (CROPS // SHOWN) == 0]
    lines = []
    for k, task in enumerate(shown):
        start = next(iter(kept.values()))["0"][k]
        cells = [task.lr, start, *(pixels[step][k] for pixels in kept.values()), task.hr]
        lines.append(ContactRow(task.lr_id, tuple(Cell(image) for image in cells)))
    write_contact_sheet(path, ["LR", "start", *found, "HR"], lines)


def _table(options: argparse.Namespace) -> None:
    out: Path = options.out
    found = {name: arm for name, arm in arms(out).items() if not options.arms or name in options.arms}
    print("\n".join(rows(found)))
    plot(out / "spatial.png", found)
    last = list(next(iter(found.values())).records[0]["scores"])[-1]
    if not options.smoke:
        sheet(out / "sheet.png", out, found, last)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--at", type=int, nargs="*", default=[], help="also judged after these steps")
    parser.add_argument("--smoke", action="store_true", help="one small step of two arms, two crops, then the table")
    options = parser.parse_args(argv)
    if options.smoke:
        options.seeds, options.arms = [0], ["global", "pool1"]
    if options.verb == "run":
        _train(options)
    if options.verb == "table" or options.smoke:
        _table(options)


if __name__ == "__main__":
    main()
