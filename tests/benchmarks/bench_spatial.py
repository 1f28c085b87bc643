"""What advantages per cell change for NFT: learning, what was never trained on, and diversity.

    uv run python tests/benchmarks/bench_spatial.py run OUT [--arms global pool1 ...] [--seeds 0 1 2] [--steps 48]
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

import numpy as np
from harness import HELD_OUT, ROOT, be_the_only_rank, scores
from lagged_loop import LaggedLoop
from watch import NAMES, Watch, diversity

from rl.config.load import load_config
from rl.config.online import RunConfig
from rl.types import F64, SRTask

CROPS, SAMPLES, SHOWN = 30, 8, 6
MAP = ("advantage.spatial=map",)
ARMS: Mapping[str, tuple[str, ...]] = {
    "global": (),
    "pool1": (*MAP, "advantage.pool=1"),
    "pool2": (*MAP, "advantage.pool=2"),
    "pool4": (*MAP, "advantage.pool=4"),
    "pool8": (*MAP, "advantage.pool=8"),
}
"""Arm -> its overrides of the quickstart; 8 cells are the whole crop."""
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
        for arm in options.arms:
            file = out / f"{arm}-{seed}.json"
            if file.is_file():
                continue
            config = recipe(seed, steps, crops, *ARMS[arm], *(SMALL if options.smoke else ()))
            run(config, file, sorted({max(1, steps // 3), steps}), samples)
            print(f"{arm} seed {seed}: done", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    train = verbs.add_parser("run")
    train.add_argument("out", type=Path)
    train.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    train.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    train.add_argument("--steps", type=int, default=48)
    train.add_argument("--smoke", action="store_true", help="one small step, two crops")
    options = parser.parse_args(argv)
    _train(options)


if __name__ == "__main__":
    main()
