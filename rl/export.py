"""The trained adapter as other tools load it: diffusers' `pytorch_lora_weights.safetensors` and a model card.

The header holds diffusers' `lora_adapter_metadata` (rank, alpha and target modules, so that `load_lora_weights`
applies the right scale) and `isrl` (base, run, step, reward summary). Torch-free: the driver writes it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rl.config.run import RunConfig
from rl.errors import InputError, MissingInput
from rl.evaluation.records import Change
from rl.types import LoraSnapshot

LORA_FILE = "pytorch_lora_weights.safetensors"
PREFIXES = ("transformer.", "unet.")
"""The pipeline's component that the adapter is for begins every tensor name, as diffusers expects it."""


def export_lora(
    folder: Path, snapshot: LoraSnapshot, config: RunConfig, *, step: int, rewards: Sequence[Change]
) -> Path:
    """Write `folder/pytorch_lora_weights.safetensors` and `folder/README.md`; returns the weights' path."""
    if snapshot.dtype != "float32":
        raise ValueError(f"export: expected a float32 adapter, got {snapshot.dtype}")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LORA_FILE
    partial = folder / f".{LORA_FILE}.partial"
    save_file(snapshot.tensors, partial, metadata=_metadata(snapshot, config, step, rewards))
    partial.rename(file)
    (folder / "README.md").write_text(_card(snapshot, config, step, rewards), encoding="utf-8")
    return file


def _metadata(snapshot: LoraSnapshot, config: RunConfig, step: int, rewards: Sequence[Change]) -> dict[str, str]:
    lora = config.policy.lora
    prefix = next(iter(snapshot.tensors)).partition(".")[0] + "."
    modules = sorted({name.removeprefix(prefix).rsplit(".lora_", 1)[0] for name in snapshot.tensors})
    adapter = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": modules, "lora_dropout": 0.0, "bias": "none"}
    facts = {
        "base": f"{config.policy.type}:{config.policy.path}",
        "run": config.run.name,
        "step": step,
        "digest": snapshot.digest,
        "rewards": {change.name: [change.before, change.after] for change in rewards},
    }
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({prefix + key: value for key, value in adapter.items()}),
        "isrl": json.dumps(facts),
    }


def read_lora_header(file: Path) -> dict[str, dict[str, object]]:
    """Both parts of the header, `adapter` and `isrl`; an adapter of another tool has an empty `isrl`."""
    if not file.is_file():
        raise MissingInput(f"{file}: no such LoRA file; a run writes it to <run.dir>/lora/{LORA_FILE}")
    try:
        with safe_open(file, framework="numpy") as handle:
            header = handle.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{file}: expected a safetensors file, got something else ({error})") from error
    adapter = json.loads(header.get("lora_adapter_metadata", "{}"))
    prefix = next((prefix for prefix in PREFIXES if prefix + "r" in adapter), None)
    if prefix is None:
        expected = " or ".join(prefix + "r" for prefix in PREFIXES)
        raise InputError(f"{file}: expected diffusers' lora_adapter_metadata with {expected} in the header, found none")
    return {
        "adapter": {key.removeprefix(prefix): value for key, value in adapter.items()},
        "isrl": json.loads(header.get("isrl", "{}")),
    }


def _card(snapshot: LoraSnapshot, config: RunConfig, step: int, rewards: Sequence[Change]) -> str:
    lora = config.policy.lora
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

Rewards on held-out photographs, {config.eval.samples if config.eval else 0} sample(s) a crop:

{table or "No held-out evaluation was configured."}

Use: `isrl restore IN OUT --lora {LORA_FILE}`, or diffusers' `load_lora_weights`. The base model's licence applies.
"""
