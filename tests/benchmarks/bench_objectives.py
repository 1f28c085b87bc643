"""Learner throughput of every objective against its bare PyTorch loop, in turns in one process.

    uv run python tests/benchmarks/bench_objectives.py [--rounds 5]

Both train the same groups, sampled by a real RolloutWorker, with the same objective module and AdamW; the learner adds
DeepSpeed, the behaviour history, the EMA and the staleness check. Flows: the embedded preset at 128x128. One-step
objectives: Stable Diffusion's classes at the size of `configs/naosd_pretrain_mini.yaml`, random weights. Limit: 0.9 x.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLOW = ["rollout.sampler={solver: dpm2, steps: 6, shift: 1.0}"]
SDE = ["rollout.sampler={solver: sde, steps: 6, shift: 1.0}"]
CASES = {
    "nft": ["objective={type: nft, timestep_fraction: 0.67, kl_weight: 0}", *FLOW],
    "grpo": ["objective={type: grpo, kl_weight: 0.04}", *SDE],
    "gdpo": ["objective={type: gdpo, draws: 4}", "rollout.group_size=6"],
    "diffusion_dpo": ["objective={type: diffusion_dpo, draws: 4}", "rollout.group_size=6"],
}
LORA = ["policy.lora={rank: 16, alpha: 32, targets: attn_add_single}"]


def make_naosd(folder: Path) -> None:
    """The preset's classes at its size, random, where the policy loader finds them."""
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    from learner.pretraining.stable_diffusion import build_unet, build_vae, prompts
    from rl.config.pretrain import load_pretrain_config

    recipe = load_pretrain_config(ROOT / "configs" / "naosd_pretrain_mini.yaml")
    build_unet(recipe).save_pretrained(folder / "unet")
    build_vae(recipe).save_pretrained(folder / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(folder / "scheduler")
    save_file({"prompt_embeds": prompts(recipe)[0].clone()}, folder / "prompt_embeds.safetensors")


def bare_loop(policy: Any, config: Any) -> Callable[[list[Any]], float]:
    """A function that trains one batch with plain AdamW and returns its seconds."""
    import torch
    from learner.objectives import build_objective

    from learner.engine import build_optimizer
    from rl.policies.lora import POLICY, adapter_parameters

    objective, theta = build_objective(policy, config), adapter_parameters(policy.backbone, POLICY)
    optimizer = build_optimizer(list(theta.values()), config.learner.optimizer)

    def train(groups: list[Any]) -> float:
        started = time.perf_counter()
        batches = objective.micro_batches(groups, 0)
        for _ in range(config.learner.updates_per_batch):
            for _ in range(config.micro_batches_per_update):
                (objective(next(batches)).total / config.micro_batches_per_update).backward()
            torch.nn.utils.clip_grad_norm_(list(theta.values()), config.learner.optimizer.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - started

    return train


def one(kind: str, rounds: int) -> None:
    """Print seconds of `rounds` batches of the learner and of the bare loop, after a warm one of each."""
    import numpy as np

    from learner.learner import Learner
    from rl.config.load import load_config
    from rl.data.source import TaskSource
    from rl.policies import load_policy
    from rl.policies.lora import OLD, POLICY, add_adapters
    from rl.rollout import RolloutWorker
    from rl.seeding import member_seeds
    from rl.types import TrainGroup

    with tempfile.TemporaryDirectory() as folder:
        one_step = "dpo" in kind
        if one_step:
            make_naosd(Path(folder))
        where = [f"policy={{type: naosd, path: {folder}, lora: {{rank: 4, alpha: 8}}}}"] if one_step else LORA
        config = load_config(
            ROOT / "configs" / "quickstart.yaml",
            ["train.groups_per_step=2", "train.max_policy_lag=0", "learner.ranks=1", "learner.updates_per_batch=2",
             *where, *CASES[kind]],
        )  # fmt: skip
        learner, worker = Learner(config), RolloutWorker(config)
        policy = load_policy(config.policy)
        add_adapters(policy.backbone, config.policy.lora, (POLICY, OLD))
    source, rng = TaskSource(config.data, 0), np.random.default_rng(0)
    bare = bare_loop(policy, config)
    seconds: dict[str, list[float]] = {"learner": [], "bare": []}
    for round_ in range(rounds + 1):
        worker.install(learner.snapshot())
        groups = []
        for task in (source.task(2 * round_), source.task(2 * round_ + 1)):
            seeds = member_seeds(0, task.ordinal, config.rollout.group_size)
            _, group = worker.rollout(task, seeds, sampled_with=config.objective.sampled_with)
            groups.append(TrainGroup(task, group, rng.standard_normal(len(seeds))))
        seconds["bare"].append(bare(groups))
        seconds["learner"].append(learner.train(groups).train_s)
    samples = 2 * config.rollout.group_size * config.micro_batches_per_group
    for name, values in seconds.items():
        print("seconds", name, samples, *values[1:])


def measure(kind: str, rounds: int) -> dict[str, list[float]]:
    """Samples per second of both loops."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, "--one", kind, "--rounds", str(rounds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{kind}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seconds")]
    return {line[1]: [float(line[2]) / float(value) for value in line[3:]] for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.rounds)
        return
    print("| objective | learner, samples/s | bare loop, samples/s | ratio | ratio by round |\n|---|---|---|---|---|")
    for kind in CASES:
        rates = measure(kind, options.rounds)
        ratios = [a / b for a, b in zip(rates["learner"], rates["bare"], strict=True)]
        medians = (statistics.median(rates["learner"]), statistics.median(rates["bare"]))
        print(
            f"| {kind} | {medians[0]:.1f} | {medians[1]:.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to "
            f"{max(ratios):.2f} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
