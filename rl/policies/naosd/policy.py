"""NAOSD (GDPO-SR, arXiv 2603.16769): a noise-aware one-step diffusion model on Stable Diffusion 2.1's classes.

    z    = s E(LR enlarged)                                        s: the VAE's scaling factor
    z~   = sqrt(abar_add) z + sqrt(1 - abar_add) eps                noised at t_add
    e    = UNet(z~, t_diff, text)                                   denoised at t_diff < t_add
    x0   = (z~ - sqrt(1 - abar_diff) e) / sqrt(abar_diff)           image = D(x0 / s)

The paper's eq. 6 prints sqrt(beta_diff) as the second denominator; its own eqs. 3-4 and its code have sqrt(abar_diff).
Left out: sampling the VAE's posterior. Its mean is taken, so that a condition is a function of the LR image alone and
a group's members differ by eps only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from rl.config.policy import PolicyConfig
from rl.errors import InputError
from rl.objectives.vsd import add_noise
from rl.policies.base import Condition, from_uint8
from rl.policies.checkpointing import enable_checkpointing
from rl.policies.naosd.text import CachedPrompt, ClipPrompts, load_prompts
from rl.types import U8


class NAOSD:
    """The policy; see `rl.policies.base` for the meaning of each method."""

    size_multiple = 8

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        prompts: CachedPrompt | ClipPrompts,
        *,
        t_add: int,
        t_diff: int,
    ) -> None:
        steps = scheduler.config.num_train_timesteps
        if scheduler.config.prediction_type != "epsilon":
            raise InputError(
                f"naosd: expected a scheduler of epsilon prediction, got {scheduler.config.prediction_type}"
            )
        for name, t in (("t_add", t_add), ("t_diff", t_diff)):
            if not 0 <= t < steps:
                raise InputError(f"policy.{name}: expected a timestep from 0 to {steps - 1}, got {t}")
        self.backbone = unet.requires_grad_(False)
        self.vae = vae.requires_grad_(False).eval()
        self.device = next(unet.parameters()).device
        self.dtype = next(unet.parameters()).dtype
        self.scheduler = scheduler
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        self.t_add, self.t_diff = t_add, t_diff
        self.prompts = prompts

    @classmethod
    def from_folder(cls, folder: Path, config: PolicyConfig) -> "NAOSD":
        """Load unet/, vae/, scheduler/ and the text encoder (or one cached embedding) of a local SD2.1 folder."""
        dtype = getattr(torch, config.dtype)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        for file in config.merge:
            from rl.policies.naosd.published import merge_published

            merge_published(unet, vae, Path(file).expanduser())
        if config.gradient_checkpointing:
            enable_checkpointing(unet)
        prompts = load_prompts(folder, config, unet.config.cross_attention_dim)
        return cls(
            unet.to(config.device), vae.to(config.device), scheduler, prompts, t_add=config.t_add, t_diff=config.t_diff
        )

    @torch.no_grad()
    def encode(self, lr: U8, scale: int, prompt: str = "") -> Condition:
        height, width = lr.shape[1] * scale, lr.shape[2] * scale
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"naosd: output sides must be divisible by {self.size_multiple}, got {width}x{height}")
        pixels = from_uint8(torch.from_numpy(np.array(lr))[None]).to(self.device, self.dtype)
        enlarged = nn.functional.interpolate(pixels, size=(height, width), mode="bicubic").clamp(-1, 1)
        return Condition(self._latents(enlarged), self.prompts(prompt).to(self.device, self.dtype))

    @torch.no_grad()
    def encode_hr(self, hr: U8) -> Tensor:
        return self._latents(from_uint8(torch.from_numpy(np.array(hr))).to(self.device, self.dtype))

    def _latents(self, pixels: Tensor) -> Tensor:
        z: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return z * float(self.vae.config.scaling_factor)

    def latent_shape(self, condition: Condition) -> tuple[int, int, int]:
        channels, height, width = condition.latents.shape[1:]
        return (channels, height, width)

    def noised(self, z: Tensor, eps: Tensor) -> Tensor:
        signal, level = self._levels(self.t_add)
        return signal * z + level * eps

    def epsilon(self, z_t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        text = _members([c.text for c in conditions if c.text is not None], len(z_t))
        out: Tensor = self.backbone(z_t.to(self.dtype), self.t_diff, encoder_hidden_states=text, return_dict=False)[0]
        return out

    def generate(self, eps: Tensor, conditions: Sequence[Condition], t_add: Sequence[int] | None = None) -> Tensor:
        z = _members([c.latents for c in conditions], len(eps))
        if t_add is None:
            z_t = self.noised(z, eps)
        else:
            z_t = add_noise(z, eps, self.alphas_cumprod.to(eps.device)[torch.tensor(t_add)])
        return self.clean(z_t, self.epsilon(z_t, conditions))

    def clean(self, z_t: Tensor, e: Tensor) -> Tensor:
        """x0 from z~ and the predicted noise, both `[B, C, h, w]`."""
        signal, noise = self._levels(self.t_diff)
        return (z_t - noise * e) / signal

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor).sample
        return images

    def _levels(self, t: int) -> tuple[float, float]:
        abar = float(self.alphas_cumprod[t])
        return abar**0.5, (1 - abar) ** 0.5


def _members(parts: Sequence[Tensor], size: int) -> Tensor:
    """One row per condition, each repeated for its run of members."""
    if not parts or size % len(parts):
        raise ValueError(f"naosd: a batch of {size} is not a multiple of {len(parts)} conditions")
    return torch.cat(list(parts)).repeat_interleave(size // len(parts), dim=0)
