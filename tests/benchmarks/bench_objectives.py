"""Learner throughput of every objective against its bare PyTorch loop, in turns in one process.

    uv run python tests/benchmarks/bench_objectives.py [--rounds 5] [--smoke]

Both train the same groups, sampled by a real RolloutWorker, with the same objective module and AdamW; the learner adds
DeepSpeed, the published versions, the EMA and the checks for stale groups and losses that are not finite. Flows: the
embedded preset at 128x128. One-step objectives: Stable Diffusion's classes at the size of
`configs/naosd_pretrain_mini.yaml`, random weights. Limit: 0.9 x.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT, be_the_only_rank, free_port, rank_environment

FLOW = ["rollout.sampler={solver: dpm2, steps: 6}"]
SDE = ["rollout.sampler={solver: sde, steps: 6}"]
ONE_STEP = ["rollout={group_size: 6}"]
LORA = ["policy.lora={rank: 16, alpha: 32, targets: attn_add_single}"]
CASES = {
    "nft": ["objective={type: nft, timestep_fraction: 0.67, kl_weight: 0}", *FLOW, *LORA],
    "grpo": ["objective={type: grpo, kl_weight: 0.04}", "learner.updates_per_batch=1", *SDE, *LORA],
    "gdpo": ["objective={type: gdpo, draws: 4}", *ONE_STEP],
    "diffusion_dpo": ["objective={type: diffusion_dpo, draws: 4}", *ONE_STEP],
}
SMOKE = ["train.groups_per_step=1", "rollout.group_size=2", "learner.updates_per_batch=1", "data.crop=64"]


def make_naosd(folder: Path) -> None:
    """The preset's classes at its size, random, where the policy loader finds them."""
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    from learner.pretraining.stable_diffusion import build_unet, build_vae, prompts
    from rl.config.load import load_pretrain_config
    from rl.config.pretrain import NAOSDPretrain

    recipe = load_pretrain_config(ROOT / "configs" / "naosd_pretrain_mini.yaml")
    assert isinstance(recipe, NAOSDPretrain)
    build_unet(recipe).save_pretrained(folder / "unet")
    build_vae(recipe).save_pretrained(folder / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(folder / "scheduler")
    save_file({"prompt_embeds": prompts(recipe)[0].clone()}, folder / "prompt_embeds.safetensors")


def one(kind: str, rounds: int, changes: Sequence[str] = ()) -> dict[str, list[float]]:
    """Samples per second of `rounds` batches of the learner and of the bare loop, after a warm one of each."""
    import numpy as np
    from bare_loop import BareTrainer

    from learner.learner import Learner
    from rl.config.load import load_config
    from rl.data.source import TaskSource
    from rl.preferences import train_item
    from rl.rollout import RolloutWorker
    from rl.seeding import member_seeds

    with tempfile.TemporaryDirectory() as folder:
        where = []
        if "rollout={group_size: 6}" in CASES[kind]:
            make_naosd(Path(folder))
            where = [f"policy={{type: naosd, path: {folder}, lora: {{rank: 4, alpha: 8}}}}"]
        config = load_config(
            ROOT / "configs" / "quickstart.yaml",
            ["train={groups_per_step: 2, max_policy_lag: 0}", "learner={ranks: 1, updates_per_batch: 2}",
             "advantage.spatial=off", *where, *CASES[kind], *changes],
        )  # fmt: skip
        learner, worker, bare = Learner(config), RolloutWorker(config), BareTrainer(config)
    source, rng = TaskSource(config.data, 0), np.random.default_rng(0)
    count = config.train.groups_per_step
    samples = count * config.rollout.group_size * config.slots
    rates: dict[str, list[float]] = {"learner": [], "bare": []}
    for round_ in range(rounds + 1):
        worker.install(learner.snapshot())
        items = []
        for task in (source.task(count * round_ + k) for k in range(count)):
            seeds = member_seeds(0, task.ordinal, config.rollout.group_size)
            _, group = worker.rollout(task, seeds)
            items.append(train_item(task, group, rng.standard_normal(len(seeds)), pairs=config.objective.pairs))
        started = time.perf_counter()
        bare.train(items)
        rates["bare"].append(samples / (time.perf_counter() - started))
        rates["learner"].append(samples / learner.train(items).train_s)
    return {name: values[1:] for name, values in rates.items()}


def measure(kind: str, rounds: int) -> dict[str, list[float]]:
    """The same in a process of its own."""
    env = os.environ | rank_environment(0, 1, free_port())
    command = [sys.executable, __file__, "--one", kind, "--rounds", str(rounds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{kind}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rates")]
    return {line[1]: [float(value) for value in line[2:]] for line in lines}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="one group of two, one round, all in this process")
    options = parser.parse_args(argv)
    if options.one:
        for name, values in one(options.one, options.rounds).items():
            print("rates", name, *values)
        return
    if options.smoke:
        be_the_only_rank()
    print("| objective | learner, samples/s | bare loop, samples/s | ratio | ratio by round |\n|---|---|---|---|---|")
    for kind in CASES:
        rates = one(kind, 1, SMOKE) if options.smoke else measure(kind, options.rounds)
        ratios = [a / b for a, b in zip(rates["learner"], rates["bare"], strict=True)]
        medians = (statistics.median(rates["learner"]), statistics.median(rates["bare"]))
        print(
            f"| {kind} | {medians[0]:.1f} | {medians[1]:.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to "
            f"{max(ratios):.2f} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
