"""`isrl restore`: a policy, maybe a trained adapter, and a user's images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rl.config.load import ConfigError
from rl.config.policy import PolicyConfig, SamplerConfig
from rl.data.photos import list_images, load_rgb
from rl.evaluation.sheets import bicubic_upscale
from rl.export import read_lora_header


@dataclass(frozen=True)
class RestoreJob:
    """The options of the command."""

    lora: Path | None
    seed: int
    policy: str
    scale: int
    steps: int
    shift: str
    colour: str
    device: str
    compare: bool

    def run(self, source: Path, target: Path) -> Iterator[Path]:
        """Restore every image of `source`; yields what was written."""
        files = list_images(source)
        config = self._policy_config()
        sampler = SamplerConfig(steps=self.steps, shift="flux2" if self.shift == "flux2" else self._shift())
        to_folder = source.is_dir() or target.suffix == ""
        (target if to_folder else target.parent).mkdir(parents=True, exist_ok=True)

        from rl.policies import load_policy
        from rl.policies.lora import attach_file
        from rl.restore import restore_image

        policy = load_policy(config)
        policy.backbone.eval()
        if self.lora is not None:
            attach_file(policy.backbone, self.lora)
        for file in files:
            lr = np.ascontiguousarray(load_rgb(file).transpose(2, 0, 1))
            image = restore_image(policy, lr, scale=self.scale, seed=self.seed, sampler=sampler, colour=self.colour)
            if self.compare:
                image = np.concatenate([bicubic_upscale(lr, self.scale), image], axis=2)
            out = target / f"{file.stem}.png" if to_folder else target
            Image.fromarray(image.transpose(1, 2, 0)).save(out)
            yield out

    def _shift(self) -> float:
        try:
            return float(self.shift)
        except ValueError as error:
            raise ConfigError(f"--shift: expected a number or flux2, got '{self.shift}'") from error

    def _policy_config(self) -> PolicyConfig:
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"--device: expected cpu or cuda, got '{self.device}'")
        if self.lora is not None:
            base = read_lora_header(self.lora)["isrl"].get("base")
            expected = f"flux2sr:{self.policy}"
            if base is not None and base != expected:
                raise ConfigError(f"--lora {self.lora}: trained on {base}, asked to run on {expected}; set --policy")
        return PolicyConfig(path=self.policy, device="cuda" if self.device == "cuda" else "cpu")
