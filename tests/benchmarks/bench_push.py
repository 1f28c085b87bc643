"""Benchmark 3: a 250 MiB adapter from a real learner to live rollout actors on one machine.

    uv run python tests/benchmarks/bench_push.py [--workers 4] [--rounds 20] [--pause 1.5] [--smoke]

`--pause` seconds lie between pushes, as an optimiser step does in a run: Ray frees objects once a second, so pushes
back to back fill the object store and wait for that.

FLUX.1's 19 double and 38 single blocks at hidden size 64, with the rank that makes the adapter 250 MiB: as many tensors
and bytes as a rank-32 adapter of the real model, through the same actors, digest and echo. Limit: median 0.15 s warm.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file

from actors.launch import spawn, start_ray
from actors.role import Role
from actors.tasks import Alarm
from actors.weight_sync import PushReport, WeightSync
from rl.config.load import validate
from rl.config.online import RunConfig
from rl.policies.flux2sr.mini_vae import MiniVAE
from rl.policies.lora import target_modules

TARGET_BYTES = 250 * 2**20
HIDDEN = 64


def make_policy(folder: Path, layers: int, single_layers: int) -> Flux2Transformer2DModel:
    """A random transformer with that many double and single blocks, saved where the policy loader finds it."""
    model = Flux2Transformer2DModel(
        in_channels=64, num_layers=layers, num_single_layers=single_layers, attention_head_dim=32,
        num_attention_heads=HIDDEN // 32, joint_attention_dim=32, mlp_ratio=2.0, axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )  # fmt: skip
    model.save_pretrained(folder / "transformer")
    MiniVAE().save_pretrained(folder / "vae")
    save_file({"prompt_embeds": torch.zeros(4, 32)}, folder / "prompt_embeds.safetensors")
    return model


def config_for(folder: Path, model: Flux2Transformer2DModel, workers: int, size_bytes: int) -> RunConfig:
    """The run that spawns one learner rank and `workers` rollout actors, at the rank that fills `size_bytes`."""

    def raw(rank: int) -> dict[str, object]:
        return {
            "data": {"path": "skimage:camera", "crop": 64},
            "policy": {"path": str(folder), "lora": {"rank": rank, "alpha": rank, "targets": "attn_add_single"}},
            "rollout": {"workers": workers, "cpus_per_worker": 0.5},
            "rewards": [{"name": "lr_consistency", "type": "lr_consistency", "cpus": 0.1}],
            "ray": {"object_store_mb": 2048},
        }

    policy = validate(RunConfig, raw(1), "probe").policy
    names = target_modules(model, policy.lora_targets[policy.lora.targets])
    layers = [model.get_submodule(name) for name in names]
    # A has a row of the layer's inputs for each rank, B a column of its outputs, float32
    per_rank = sum(4 * sum(layer.weight.shape) for layer in layers if isinstance(layer, torch.nn.Linear))
    return validate(RunConfig, raw(round(size_bytes / per_rank)), "bench_push")


async def measure(config: RunConfig, rounds: int, warm_up: int, pause_s: float) -> list[PushReport]:
    cluster = spawn(config)
    workers = Role(cluster.roles[0], config.fleet, Alarm())
    sync = WeightSync(cluster.learners[0], workers, 120.0)
    # as in a run after its first step; nothing is trained here, so every push would probe the effect
    sync._watching = False
    await asyncio.gather(workers.open(), *cluster.started)
    reports = []
    for _ in range(warm_up + rounds):
        reports.append(await sync.push())
        await asyncio.sleep(pause_s)
    return reports[warm_up:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause", type=float, default=1.5)
    parser.add_argument("--smoke", action="store_true", help="an adapter of 1 MiB to one worker, twice")
    options = parser.parse_args(argv)
    if options.smoke:
        options.workers, options.rounds, options.pause = 1, 2, 0.0
    layers, size_bytes, warm_up = ((1, 1), 2**20, 1) if options.smoke else ((19, 38), TARGET_BYTES, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_for(folder, make_policy(folder, *layers), options.workers, size_bytes)
        start_ray(config)
        reports = asyncio.run(measure(config, options.rounds, warm_up, options.pause))
    totals = sorted(report.total_s for report in reports)
    row = {
        "adapter_mib": reports[0].size_bytes / 2**20,
        "workers": options.workers,
        "rounds": len(totals),
        "total_s_median": statistics.median(totals),
        "total_s_min": totals[0],
        "total_s_p90": totals[int(0.9 * len(totals))],
        "total_s_max": totals[-1],
        "pause_s": options.pause,
        **{
            f"{part}_s_median": statistics.median(getattr(report, f"{part}_s") for report in reports)
            for part in ("gather", "put", "load", "verify")
        },
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
