"""Peak memory of one learner step of every objective: one base shared by adapters against separate copies.

    uv run python tests/benchmarks/bench_memory.py

One group through forward, backward and AdamW on one CPU thread, a process each; peak resident memory above what the
process held before the model was built. One-step objectives: Stable Diffusion 2.1's UNet and VAE, flows: a
Flux2Transformer2DModel of 0.5 B parameters, both random, float32, rank 16. `copies` replaces the reference (adapters
off) and NFT's behaviour (adapter `old`) by whole models of their own.
"""

import argparse
import copy
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SDE = "rollout.sampler={solver: sde, steps: 6, shift: 1.0}"
CASES: dict[str, tuple[str, ...]] = {
    "nft": ("objective={type: nft, kl_weight: 1.0e-4}",),
    "grpo": ("objective={type: grpo, kl_weight: 0.04}", SDE),
    "gdpo": ("objective={type: gdpo}",),
    "diffusion_dpo": ("objective={type: diffusion_dpo}",),
}
COPIES = {"nft": (None, "old"), "grpo": (None,), "gdpo": (None,), "diffusion_dpo": (None,)}


def build(kind: str) -> Any:
    """The policy of an objective, random weights."""
    if "dpo" in kind:
        from bench_naosd_full import build as build_naosd

        return build_naosd("cpu")
    import torch
    from diffusers import Flux2Transformer2DModel

    from rl.policies.flux2sr.mini_vae import MiniVAE
    from rl.policies.flux2sr.policy import Flux2SR

    transformer = Flux2Transformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=12, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=256, mlp_ratio=3.0, axes_dims_rope=(16, 16, 16, 16), guidance_embeds=False,
    )  # fmt: skip
    return Flux2SR(transformer, MiniVAE(), torch.randn(8, 256))


def separate(policy: Any, adapters: tuple[str | None, ...]) -> None:
    """Give every listed adapter (None: the reference) a whole model, used wherever the objective switches to it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    shared = policy.backbone
    copies = {name: copy.deepcopy(shared).requires_grad_(False) for name in adapters}
    layer = next(module for module in shared.modules() if isinstance(module, BaseTunerLayer))
    method = "epsilon" if hasattr(policy, "epsilon") else "velocity"
    call = getattr(policy, method)

    def dispatched(*args: Any) -> Any:
        active = None if layer._disable_adapters else layer._active_adapter
        name = active[0] if isinstance(active, list) else active
        policy.backbone = copies.get(name, shared)
        try:
            return call(*args)
        finally:
            policy.backbone = shared

    setattr(policy, method, dispatched)


def one(kind: str, *, copies: bool) -> None:
    """Print the peak in MiB and the parameters of the backbone in millions."""
    import numpy as np
    import torch
    from learner.objectives import build_objective

    from learner.engine import build_optimizer
    from rl.config.load import load_config
    from rl.data.source import TaskSource
    from rl.policies.lora import OLD, POLICY, adapter_parameters, add_adapters
    from rl.seeding import member_seeds
    from rl.types import RolloutGroup, TrainGroup, TrajectoryRecord

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lora = "naosd, lora: {rank: 16, alpha: 32, targets: unet_all}" if "dpo" in kind else "flux2sr, lora: {rank: 16}"
    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        ["train.groups_per_step=1", "train.max_policy_lag=0", "learner.ranks=1", "learner.updates_per_batch=1",
         "rollout.group_size=6", f"policy={{type: {lora}}}", *CASES[kind]],
    )  # fmt: skip
    policy = build(kind)
    add_adapters(policy.backbone, config.policy.lora, (POLICY, OLD))
    if copies:
        separate(policy, COPIES[kind])
    theta = adapter_parameters(policy.backbone, POLICY)
    objective, optimizer = (
        build_objective(policy, config),
        build_optimizer(list(theta.values()), config.learner.optimizer),
    )
    task = TaskSource(config.data, 0).task(0)
    condition = policy.encode(task.lr, task.scale, task.prompt)
    shape, rng = policy.latent_shape(condition), np.random.default_rng(0)
    x = rng.standard_normal((6, *shape)).astype(np.float32)
    record = TrajectoryRecord((0,), x[None], x[None], np.zeros((1, 6)), None) if kind == "grpo" else None
    images = rng.integers(0, 256, (6, *task.hr.shape), dtype=np.uint8)
    group = RolloutGroup(0, task.lr_id, 0, "", member_seeds(0, 0, 6), x, images, record)
    batch = next(objective.micro_batches([TrainGroup(task, group, rng.standard_normal(6))], 0))
    objective(batch).total.backward()
    optimizer.step()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print("peak", peak, sum(p.numel() for p in policy.backbone.parameters()) / 1e6)


def measure(kind: str, mode: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--one", kind, "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("peak")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{kind} {mode}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return float(lines[0][1]), float(lines[0][2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=["shared", "copies"], default="shared", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, copies=options.mode == "copies")
        return
    print("| objective | backbone, M | models as copies | shared, MiB | copies, MiB | copies / shared |")
    print("|---|---|---|---|---|---|")
    for kind in CASES:
        shared, millions = measure(kind, "shared")
        copies, _ = measure(kind, "copies")
        row = (
            kind,
            f"{millions:.0f}",
            1 + len(COPIES[kind]),
            f"{shared:.0f}",
            f"{copies:.0f}",
            f"{copies / shared:.2f}",
        )
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
