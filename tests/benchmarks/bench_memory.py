"""Peak memory of one learner step of every objective: one base shared by adapters against separate copies.

    uv run python tests/benchmarks/bench_memory.py [--smoke]

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import ROOT

from rl.config.load import load_config
from rl.config.online import RunConfig

SDE = "rollout.sampler={solver: sde, steps: 6}"
FLUX = "policy={type: flux2sr, lora: {rank: 16}}"
SD = "policy={type: naosd, lora: {rank: 16, alpha: 32, targets: unet_all}}"


@dataclass(frozen=True)
class Case:
    """An objective's overrides, and the adapters that separate copies stand for; None is the reference."""

    overrides: tuple[str, ...]
    copies: tuple[str | None, ...] = (None,)


CASES = {
    "nft": Case((FLUX, "objective={type: nft, kl_weight: 1.0e-4}"), (None, "old")),
    "grpo": Case((FLUX, "objective={type: grpo, kl_weight: 0.04}", SDE)),
    "gdpo": Case((SD, "rollout={group_size: 6}", "objective={type: gdpo}")),
    "diffusion_dpo": Case((SD, "rollout={group_size: 6}", "objective={type: diffusion_dpo}")),
}


def build(config: RunConfig, *, small: bool) -> Any:
    """The policy of a recipe with random weights."""
    if config.policy.one_step:
        from bench_naosd_full import FULL, SMOKE
        from bench_naosd_full import build as build_naosd

        from rl.policies.naosd.section import NAOSDSection

        section = config.policy
        assert isinstance(section, NAOSDSection)
        return build_naosd(section, SMOKE if small else FULL)
    import torch
    from diffusers import Flux2Transformer2DModel

    from rl.policies.flux2sr.mini_vae import MiniVAE
    from rl.policies.flux2sr.policy import Flux2SR
    from rl.policies.flux2sr.section import Flux2SRSection

    assert isinstance(config.policy, Flux2SRSection)
    blocks: dict[str, int] = (
        {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 1}
        if small
        else {"num_layers": 2, "num_single_layers": 12, "attention_head_dim": 64, "num_attention_heads": 24}
    )
    transformer = Flux2Transformer2DModel(
        in_channels=64, joint_attention_dim=256, mlp_ratio=3.0, axes_dims_rope=(16, 16, 16, 16), guidance_embeds=False,
        **blocks,
    )  # fmt: skip
    return Flux2SR(transformer, MiniVAE(), torch.randn(8, 256), config.policy)


def separate(policy: Any, adapters: tuple[str | None, ...]) -> None:
    """Give every listed adapter a whole model, used wherever the objective switches to it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ((component, shared),) = policy.modules.items()
    copies = {name: copy.deepcopy(shared).requires_grad_(False) for name in adapters}
    layer = next(module for module in shared.modules() if isinstance(module, BaseTunerLayer))
    call = policy.prediction

    def dispatched(*args: Any) -> Any:
        active = None if layer._disable_adapters else layer._active_adapter
        name = active[0] if isinstance(active, list) else active
        setattr(policy, component, copies.get(name, shared))
        try:
            return call(*args)
        finally:
            setattr(policy, component, shared)

    policy.prediction = dispatched


def one(kind: str, *, copies: bool, small: bool = False) -> tuple[float, float]:
    """Peak in MiB and parameters of the backbone in millions."""
    import numpy as np
    import torch
    from bare_loop import BareTrainer

    from rl.data.source import TaskSource
    from rl.preferences import train_item
    from rl.seeding import member_seeds
    from rl.types import RolloutGroup, TrajectoryRecord

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = CASES[kind]
    config = load_config(
        ROOT / "configs" / "quickstart.yaml",
        ["train={groups_per_step: 1, max_policy_lag: 0}", "learner={ranks: 1}", "rollout.group_size=6",
         "advantage.spatial=off", *case.overrides],
    )  # fmt: skip
    policy = build(config, small=small)
    trainer = BareTrainer(config, policy)
    if copies:
        separate(policy, case.copies)
    task = TaskSource(config.data, 0).task(0)
    assert task.hr is not None
    condition = policy.condition(task.lr, task.scale, task.prompt)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, *policy.latent_shape(condition))).astype(np.float32)
    steps = config.sampler.trained_steps
    grid = tuple(range(steps + 1))
    record = TrajectoryRecord(grid[:-1], grid, np.stack([x] * len(grid)), np.zeros((steps, 6)), None)
    images = rng.integers(0, 256, (6, *task.hr.shape), dtype=np.uint8)
    trajectory = record if config.objective.likelihood else None
    group = RolloutGroup(0, task.lr_id, 0, "", member_seeds(0, 0, 6), x, images, trajectory)
    item = train_item(task, group, rng.standard_normal(6), pairs=config.objective.pairs)
    trainer.objective(next(trainer.objective.micro_batches([item], 0))).total.backward()
    trainer.optimizer.step()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    (backbone,) = policy.modules.values()
    return peak, sum(p.numel() for p in backbone.parameters()) / 1e6


def measure(kind: str, mode: str) -> tuple[float, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("peak")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{kind} {mode}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return float(lines[0][1]), float(lines[0][2])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=["shared", "copies"], default="shared", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="small models, all in this process: peaks mean nothing")
    options = parser.parse_args(argv)
    if options.one:
        print("peak", *one(options.one, copies=options.mode == "copies"))
        return
    print("| objective | backbone, M | models as copies | shared, MiB | copies, MiB | copies / shared |")
    print("|---|---|---|---|---|---|")
    for kind, case in CASES.items():
        if options.smoke:
            shared, millions = one(kind, copies=False, small=True)
            copies, _ = one(kind, copies=True, small=True)
        else:
            shared, millions = measure(kind, "shared")
            copies, _ = measure(kind, "copies")
        ratio = "-" if shared == 0 else f"{copies / shared:.2f}"
        row = (kind, f"{millions:.1f}", 1 + len(case.copies), f"{shared:.0f}", f"{copies:.0f}", ratio)
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
