"""`isrl plan` of a pre-training recipe: the stages, what they read, what is missing here. No torch."""

from pathlib import Path

from rl.config.base import SKIMAGE
from rl.config.pretrain import FlowPretrain, NAOSDPretrain, StudentStage

Row = tuple[str, str]


def pretrain_plan_text(config: FlowPretrain | NAOSDPretrain) -> str:
    """Stages with their steps and batches, then every input with MISSING where it is not on this machine."""
    sections = {
        f"pre-training of {config.type} into {config.out}, one process, {config.device}": _stages(config),
        "inputs": [(label, _found(path)) for label, path in _inputs(config)],
    }
    width = max(len(label) for rows in sections.values() for label, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {label:<{width}}  {text}" for label, text in rows)]) for title, rows in sections.items()
    )


def _stages(config: FlowPretrain | NAOSDPretrain) -> list[Row]:
    vae = ("vae", f"{config.vae.steps} steps of {config.vae.batch} crops of {config.vae.crop} px")
    cached = f"out of {config.pairs} cached crops of {config.crop} px"
    if isinstance(config, FlowPretrain):
        return [vae, ("flow", f"{config.flow.steps} steps of {config.flow.batch} {cached}")]
    teacher = ("teacher", f"{config.teacher.steps} steps of {config.teacher.batch} {cached}")
    return [*([] if config.base else [vae, teacher]), ("student", _student(config.student, config.crop))]


def _student(stage: StudentStage, crop: int) -> str:
    return (
        f"{stage.steps} steps of {stage.batch} x {stage.accumulate} crops of {crop} px, LoRA rank {stage.lora_rank}, "
        f"{stage.pixel_weight:g} {stage.pixel.upper()} + {stage.lpips_weight:g} LPIPS + {stage.vsd_weight:g} VSD"
    )


def _inputs(config: FlowPretrain | NAOSDPretrain) -> list[Row]:
    rows = [("photographs", path) for group in config.photos for path in group.path]
    rows += [("held out", path) for path in config.held_out]
    rows += [("lpips backbone", config.lpips.backbone), ("lpips heads", config.lpips.heads)]
    if isinstance(config, NAOSDPretrain):
        optional = {"base": config.base, "prompts": config.prompts.prompt_path}
        rows += [(label, path) for label, path in optional.items() if path is not None]
    return rows


def _found(path: str) -> str:
    there = path.startswith(SKIMAGE) or Path(path).expanduser().exists()
    return path if there else f"MISSING here: {path}"
