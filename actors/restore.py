"""`isrl restore`: a policy, maybe a trained adapter, and a user's images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rl.policies.folders import policy_folder, preset_folder

from rl.config.load import validate
from rl.config.policy import PolicyConfig, PolicyType, SamplerConfig
from rl.config.prompts import PromptSection
from rl.data.photos import IMAGE_SUFFIXES, list_images, load_rgb
from rl.data.prompts import load_prompts
from rl.errors import InputError
from rl.evaluation.sheets import bicubic_upscale
from rl.export import read_lora_header

Colour = Literal["wavelet", "adain", "none"]
Device = Literal["cpu", "cuda"]
TILE_PX: dict[PolicyType, int] = {"flux2sr": 1024, "naosd": 512}
PRESET_TILE_PX = 128
"""The sides that the models are trained at, on which tiles look best."""


@dataclass(frozen=True)
class RestoreJob:
    """The options of the command."""

    lora: Path | None
    seed: int
    type: PolicyType
    policy: str
    scale: int
    steps: int
    shift: str
    t_add: int | None
    merge: list[Path]
    prompt: str
    prompt_path: Path | None
    tile: int | None
    colour: Colour
    device: Device
    compare: bool

    def run(self, source: Path, target: Path) -> Iterator[Path]:
        """Restore every image of `source`; yields what was written."""
        files = list_images(source)
        config = self._policy_config()
        sampler = validate(SamplerConfig, {"steps": self.steps, "shift": self.shift}, "isrl restore")
        prompts = self._prompts(files)
        tile_px = self._tile_px(config)
        outputs = _outputs(files, source, target)

        import torch
        from rl.restore import restore_image

        from rl.policies import load_policy
        from rl.policies.lora import attach_file

        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no GPU here; write --device cpu")
        policy = load_policy(config)
        policy.backbone.eval()
        if self.lora is not None:
            attach_file(policy.backbone, self.lora)
        for file, out in zip(files, outputs, strict=True):
            lr = np.ascontiguousarray(load_rgb(file).transpose(2, 0, 1))
            image = restore_image(
                policy, lr, scale=self.scale, seed=self.seed, sampler=sampler, prompt=prompts[str(file)],
                tile_px=tile_px, overlap_px=tile_px * 3 // 8, colour=self.colour,
            )  # fmt: skip
            if self.compare:
                image = np.concatenate([bicubic_upscale(lr, self.scale), image], axis=2)
            Image.fromarray(image.transpose(1, 2, 0)).save(out)
            yield out

    def _policy_config(self) -> PolicyConfig:
        raw: dict[str, object] = {"type": self.type, "path": self.policy, "device": self.device}
        raw["merge"] = [str(file) for file in self.merge]
        if self.t_add is not None:
            if self.type != "naosd":
                raise InputError(f"--t-add is read only by --type naosd, got --type {self.type}")
            raw["t_add"] = self.t_add
        config = validate(PolicyConfig, raw, "isrl restore")
        policy_folder(config)
        if self.lora is not None:
            base = read_lora_header(self.lora)["isrl"].get("base")
            expected = f"{config.type}:{config.path}"
            if isinstance(base, str) and base != expected and _names_a_preset(base, config):
                raise InputError(f"--lora {self.lora}: trained on {base}, asked to run on {expected}; set --policy")
        return config

    def _prompts(self, files: list[Path]) -> dict[str, str]:
        folder = None if self.prompt_path is None else str(self.prompt_path)
        section = validate(PromptSection, {"prompt": self.prompt, "prompt_path": folder}, "isrl restore")
        return load_prompts(section, [str(file) for file in files])

    def _tile_px(self, config: PolicyConfig) -> int:
        if self.tile is not None:
            return self.tile
        return PRESET_TILE_PX if preset_folder(config) is not None else TILE_PX[config.type]


def _names_a_preset(base: str, config: PolicyConfig) -> bool:
    """Presets are told apart by name; a local folder may lie elsewhere today, so its tensors decide."""
    trained_on = config.model_copy(update={"path": base.removeprefix(f"{config.type}:")})
    return preset_folder(trained_on) is not None or preset_folder(config) is not None


def _outputs(files: list[Path], source: Path, target: Path) -> list[Path]:
    """Where each result goes; refused before the model is loaded where it cannot be written."""
    to_folder = source.is_dir() or target.is_dir() or target.suffix == ""
    if not to_folder and target.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"OUT {target}: expected a folder or a file ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    folder = target if to_folder else target.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"OUT {folder}: expected a folder, found a file")
    outputs = [folder / f"{file.stem}.png" for file in files] if to_folder else [target]
    if len(set(outputs)) < len(files):
        raise InputError(f"{source}: two images differ only in their ending, and both would be written to one .png")
    folder.mkdir(parents=True, exist_ok=True)
    return outputs
