"""The trained adapter as other tools load it: diffusers' `pytorch_lora_weights.safetensors` and a model card.

`rl.policies.lora_export` writes the file. The `isrl` part of its header holds base, run, step, reward summary, the
training rank and alpha, and the settings for restoring. Torch-free: the driver writes it.
"""

from collections.abc import Sequence
from pathlib import Path

from rl.config.online import RunConfig
from rl.config.training import TrainingSection
from rl.evaluation.records import Change
from rl.policies.lora_export import write_adapter
from rl.policies.lora_file import LORA_FILE, adapter_of, read_lora_header
from rl.restoration.settings import recorded
from rl.types import LoraSnapshot

__all__ = ["LORA_FILE", "export_lora", "read_lora_header"]


def export_lora(
    folder: Path, snapshot: LoraSnapshot, config: TrainingSection, *, step: int, rewards: Sequence[Change]
) -> Path:
    """Write `folder/pytorch_lora_weights.safetensors` and `folder/README.md`; returns the weights' path."""
    if snapshot.dtype != "float32":
        raise ValueError(f"export: expected a float32 adapter, got {snapshot.dtype}")
    facts = {
        "base": f"{config.policy.type}:{config.policy.path}",
        "run": config.run.name,
        "step": step,
        "digest": snapshot.digest,
        "layout": config.policy.layout,
        "rank": config.policy.lora.rank,
        "alpha": config.policy.lora.alpha,
        "restore": recorded(config),
        "rewards": {change.name: [change.before, change.after] for change in rewards},
    }
    file = folder / LORA_FILE
    write_adapter(file, adapter_of(snapshot.tensors, config.policy.lora.alpha, config.run.name, facts), "diffusers")
    (folder / "README.md").write_text(_card(snapshot, config, step, rewards), encoding="utf-8")
    return file


def _card(snapshot: LoraSnapshot, config: TrainingSection, step: int, rewards: Sequence[Change]) -> str:
    lora = config.policy.lora
    samples = config.eval.samples if isinstance(config, RunConfig) and config.eval else 0
    rows = "\n".join(
        f"| {c.name} | {c.before:.4f} | {c.after:.4f} | {c.difference.mean:+.4f} "
        f"[{c.difference.low:+.4f}, {c.difference.high:+.4f}] | {c.pairs} |"
        for c in rewards
    )
    table = (
        f"| reward | before | after | change, 95 % interval | pairs |\n|---|---|---|---|---|\n{rows}\n" if rows else ""
    )
    return f"""---
base_model: {config.policy.path}
library_name: diffusers
tags: [lora, super-resolution, isrl]
---

# {config.run.name}

A LoRA for `{config.policy.type}` (`{config.policy.path}`), trained by isrl with the `{config.objective.type}`
objective for {step} steps: rank {lora.rank}, alpha {lora.alpha:g}, targets `{lora.targets}`, seed {config.seed}.
It holds the exponential moving average of the trained adapter, digest `{snapshot.digest}`.

Rewards on held-out photographs, {samples} sample(s) a crop:

{table or "No held-out evaluation was configured."}

Use: `isrl restore IN OUT --lora {LORA_FILE}`, diffusers' `load_lora_weights`, or ComfyUI; the scale is folded into the
weights, so load it at strength 1. The base model's licence applies.
"""
