"""What an advantage per cell costs: seconds of the learner, and bytes that travel with a group.

    uv run python tests/benchmarks/bench_cells.py [--rounds 7] [--only KIND ...] [--smoke]

Two learners of one recipe, with `advantage.spatial` off and map (cells of one latent position, the most there can be),
train on the same groups in turn; the ratio is that of one round. Sizes are those of the carriers' arrays: a group is
its latents and images, maps are what its reward servers add, advantages what the driver sends to the learner.
"""

import argparse
import statistics
from collections.abc import Sequence

import numpy as np
from harness import ROOT, be_the_only_rank

from learner.learner import Learner
from rl.config.load import load_config
from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.preferences import train_item
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds
from rl.spatial import grid
from rl.types import RolloutGroup, map_bytes

ONE_STEP = ("rollout={group_size: 6}", "policy={type: naosd, lora: {rank: 4, alpha: 8}}", "learner.updates_per_batch=1")
CASES: dict[str, tuple[str, ...]] = {
    "nft": (),
    "grpo": ("objective={type: grpo, clip: 1.0e-4}", "rollout.sampler={solver: sde, steps: 6}",
             "learner.updates_per_batch=1"),
    "gdpo": ("objective={type: gdpo}", *ONE_STEP),
    "diffusion_dpo": ("objective={type: diffusion_dpo}", *ONE_STEP),
    "diffusion_dpo, latents": ("objective={type: diffusion_dpo}", *ONE_STEP),
}  # fmt: skip
WITH_CELLS = {"diffusion_dpo, latents": ("objective.stitched=latents",)}
SMALL = ("train.groups_per_step=1", "rollout.group_size=2", "learner.updates_per_batch=1", "data.crop=64")


def recipe(kind: str, *more: str) -> RunConfig:
    fixed = ["train={groups_per_step: 2, max_policy_lag: 0}", "learner.ranks=1", "eval=null", "advantage.spatial=off"]
    return load_config(ROOT / "configs" / "quickstart.yaml", [*fixed, *CASES[kind], *more])


def ratios(kind: str, rounds: int, *more: str) -> tuple[list[float], RolloutGroup, tuple[int, int]]:
    """Learner seconds with cells over those without, by round after a warm one; a group, and its grid."""
    more_cells = ("advantage.spatial=map", *WITH_CELLS.get(kind, ()))
    plain, spatial = recipe(kind, *more), recipe(kind, *more_cells, *more)
    pairs = [(Learner(config), RolloutWorker(config), config) for config in (plain, spatial)]
    source, rng, found = TaskSource(plain.data, 0), np.random.default_rng(0), []
    for round_ in range(rounds + 1):
        seconds = []
        for learner, worker, config in pairs if round_ % 2 else reversed(pairs):
            worker.install(learner.snapshot())
            items = []
            for k in range(config.train.groups_per_step):
                task = source.task(round_ * config.train.groups_per_step + k)
                _, group = worker.rollout(task, member_seeds(0, task.ordinal, config.group_size))
                cells = () if config.map_cell_px is None else grid(group.images.shape[2:], config.map_cell_px)
                advantages = rng.standard_normal((config.group_size, *cells))
                items.append(train_item(task, group, advantages, pairs=config.objective.pairs))
            seconds.append((config.map_cell_px is None, learner.train(items).train_s))
        by_kind = dict(seconds)
        found.append(by_kind[False] / by_kind[True])
    return found[1:], group, grid(group.images.shape[2:], spatial.map_cell_px or 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--smoke", action="store_true", help="one round of NFT on one group of two")
    options = parser.parse_args(argv)
    be_the_only_rank()
    print(
        "| objective | learner seconds, map / off | by round | group, bytes | map of a reward | advantages | more |\n"
        "|---|---|---|---|---|---|---|"
    )
    for kind in ("nft",) if options.smoke else options.only:
        found, group, cells = ratios(kind, 1 if options.smoke else options.rounds, *(SMALL if options.smoke else ()))
        size = group.latents.nbytes + group.images.nbytes
        one_map = map_bytes(len(group.latents), *cells)
        advantages = 2 * len(group.latents) * cells[0] * cells[1]
        print(
            f"| {kind} | {statistics.median(found):.3f} | {min(found):.3f} to {max(found):.3f} | {size} | {one_map} | "
            f"{advantages} | {100 * (2 * one_map + advantages) / size:.2f} % |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
