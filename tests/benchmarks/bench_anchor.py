"""What policy lag costs a step of NFT, by the anchor of its implicit policies: `objective.anchor` newest or behaviour.

    uv run python tests/benchmarks/bench_anchor.py OUT.jsonl [--seeds 0 1 2] [--lags 0 1 2 4] [--steps 16] [--smoke]

The quickstart's recipe with the real worker, rewards and learner in one process and without Ray, so that lag is exact:
the groups of step s are sampled with version max(0, s - lag). Judged by the EMA on crops of photographs that nothing
was trained on, before, in the middle and after. A run that is in OUT already is not repeated. Left out: what lag saves,
which is `bench_overlap.py`'s.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from harness import HELD_OUT, ROOT, be_the_only_rank, scores
from lagged_loop import LaggedLoop

from rl.config.load import load_config
from rl.config.online import RunConfig
from rl.evaluation.bootstrap import paired_bootstrap
from rl.types import F64

CROPS = 72
SMALL = ("train.groups_per_step=1", "rollout.group_size=2", "data.crop=64", "eval.data.crop=64")
ANCHORS = ("newest", "behaviour")


class Judged(TypedDict):
    """What a run left on the held-out crops."""

    photos: list[str]
    """Of each crop."""
    scores: dict[str, list[list[float]]]
    """Steps trained -> `[crops, R]`."""
    names: list[str]
    """Of the R rewards."""


class Record(Judged):
    """One line of the output."""

    seed: int
    lag: int
    anchor: str
    steps: int
    crops: int


def recipe(seed: int, lag: int, anchor: str, steps: int, crops: int, *more: str) -> RunConfig:
    """The quickstart on one rank."""
    photos = [path for path in HELD_OUT if path.startswith("skimage:") or Path(path).is_file()]
    return load_config(
        ROOT / "configs" / "quickstart.yaml",
        [
            f"seed={seed}",
            f"train.max_policy_lag={lag}",
            f"train.steps={steps}",
            f"objective.anchor={anchor}",
            "advantage.spatial=off",
            "learner.ranks=1",
            "learner.threads=1",
            f"eval.crops={crops}",
            f"eval.data.path={photos}",
            *more,
        ],
    )


def judge(loop: LaggedLoop) -> tuple[list[str], F64]:
    """(photograph, scores `[R]`) of the EMA on every held-out crop, the same noise at every call."""
    tasks, groups = zip(*loop.held_out(1), strict=True)
    return [task.lr_id.partition("@")[0] for task in tasks], scores(loop.servers, tasks, groups)[:, 0]


def run(config: RunConfig, judged_at: Sequence[int]) -> Judged:
    """Scores of the held-out crops before and after each of `judged_at` steps."""
    loop = LaggedLoop(config)
    photos, before = judge(loop)
    found: dict[str, list[list[float]]] = {"0": before.tolist()}
    for s in range(config.train.steps):
        loop.step(s)
        if s + 1 in judged_at:
            found[str(s + 1)] = judge(loop)[1].tolist()
    return {"photos": photos, "scores": found, "names": [reward.name for reward in config.rewards]}


def variants(lags: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Without lag both anchors are one."""
    for lag in lags:
        for anchor in ANCHORS if lag else ANCHORS[:1]:
            yield lag, anchor


def table(records: Sequence[Record]) -> str:
    """Change of every reward after each number of steps, mean over seeds, interval over photographs."""
    rows = ["| lag | anchor | seeds | steps | reward | change, 95 % over photographs |", "|---|---|---|---|---|---|"]
    keys = dict.fromkeys((r["lag"], r["anchor"]) for r in records)
    for lag, anchor in keys:
        runs = [r for r in records if (r["lag"], r["anchor"]) == (lag, anchor)]
        clusters = np.unique(np.concatenate([np.array(r["photos"]) for r in runs]), return_inverse=True)[1]
        for steps in [key for key in runs[0]["scores"] if key != "0"]:
            before, after = (np.concatenate([np.array(r["scores"][k]) for r in runs]) for k in ("0", steps))
            for k, name in enumerate(runs[0]["names"]):
                change = paired_bootstrap(before[:, k], after[:, k], clusters=clusters)
                rows.append(
                    f"| {lag} | {anchor} | {len(runs)} | {steps} | {name} | {change.mean:+.4f} "
                    f"[{change.low:+.4f}, {change.high:+.4f}] |"
                )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="one small step, two crops, lag 1")
    options = parser.parse_args(argv)
    be_the_only_rank()
    steps, crops = (1, 2) if options.smoke else (options.steps, CROPS)
    seeds, lags = ([0], [1]) if options.smoke else (options.seeds, options.lags)
    out: Path = options.out
    records: list[Record] = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    for seed in seeds:
        for lag, anchor in variants(lags):
            facts = (seed, lag, anchor, steps, crops)
            if any((r["seed"], r["lag"], r["anchor"], r["steps"], r["crops"]) == facts for r in records):
                continue
            found = run(recipe(*facts, *(SMALL if options.smoke else ())), sorted({steps // 2, steps} - {0}))
            records.append({"seed": seed, "lag": lag, "anchor": anchor, "steps": steps, "crops": crops, **found})
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
            print(f"seed {seed} lag {lag} {anchor}: done", flush=True)
    print(table([record for record in records if (record["steps"], record["crops"]) == (steps, crops)]))


if __name__ == "__main__":
    main()
