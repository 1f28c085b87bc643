"""NAOSD (GDPO-SR, arXiv 2603.16769): a noise-aware one-step diffusion model on Stable Diffusion 2.1's classes.

    z    = s E(LR enlarged)                                        s: the VAE's scaling factor
    z~   = sqrt(abar_add) z + sqrt(1 - abar_add) eps                noised at t_add
    e    = UNet(z~, t_diff, text)                                   denoised at t_diff < t_add
    x0   = (z~ - sqrt(1 - abar_diff) e) / sqrt(abar_diff)           image = D(x0 / s)

The paper's eq. 6 prints sqrt(beta_diff) as the second denominator; its own eqs. 3-4 and its code have sqrt(abar_diff).
Left out: sampling the VAE's posterior. Its mean is used, so that a condition depends on the LR image alone and a
group's members differ only in eps.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from rl.errors import InputError
from rl.flow.ddpm import noised
from rl.policies.base import LatentCondition, OneStepPolicy, enlarged, from_uint8, repeated
from rl.policies.naosd.section import NAOSDSection
from rl.policies.naosd.text import CachedPrompt, ClipPrompts, load_prompts
from rl.policies.recompute import enable_recomputation
from rl.types import U8, Enlargement


class NAOSD(OneStepPolicy):
    """The policy; `rl.policies.base` documents each method.

    Noised states may have any level t; `prediction` and `clean` are always at t_diff.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: DDPMScheduler,
        prompts: CachedPrompt | ClipPrompts,
        section: NAOSDSection,
    ) -> None:
        steps = scheduler.config.num_train_timesteps
        if scheduler.config.prediction_type != "epsilon":
            raise InputError(
                f"naosd: expected a scheduler of epsilon prediction, got {scheduler.config.prediction_type}"
            )
        for name, t in (("t_add", section.t_add), ("t_diff", section.t_diff)):
            if not 0 <= t < steps:
                raise InputError(f"policy.{name}: expected a timestep from 0 to {steps - 1}, got {t}")
        self.section = section
        self.unet = unet.requires_grad_(False)
        self.modules = {"unet": unet}
        self.vae = vae.requires_grad_(False).eval()
        self.device = next(unet.parameters()).device
        self.dtype = next(unet.parameters()).dtype
        self.scheduler = scheduler
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        self.t_add, self.t_diff = section.t_add, section.t_diff
        self.prompts = prompts

    @classmethod
    def from_folder(cls, folder: Path, section: NAOSDSection) -> "NAOSD":
        """Load unet/, vae/, scheduler/ and the text encoder (or one cached embedding) from a local SD2.1 folder."""
        dtype = getattr(torch, section.dtype)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        for file in section.merge:
            from rl.policies.naosd.published import merge_published

            merge_published(unet, vae, Path(file).expanduser())
        if section.gradient_checkpointing:
            enable_recomputation(unet)
        prompts = load_prompts(folder, section, unet.config.cross_attention_dim)
        return cls(unet.to(section.device), vae.to(section.device), scheduler, prompts, section)

    @torch.no_grad()
    def condition(
        self, lr: U8, scale: int, prompt: str = "", *, enlargement: Enlargement = "bicubic"
    ) -> LatentCondition:
        large = enlarged(lr, scale, self.section.size_multiple, enlargement).to(self.device, self.dtype)
        return LatentCondition(self._latents(large), self.prompts(prompt).to(self.device, self.dtype))

    @torch.no_grad()
    def encode_hr(self, hr: U8) -> Tensor:
        return self._latents(from_uint8(torch.from_numpy(np.array(hr))).to(self.device, self.dtype))

    def _latents(self, pixels: Tensor) -> Tensor:
        z: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return z * float(self.vae.config.scaling_factor)

    def latent_shape(self, condition: LatentCondition) -> tuple[int, int, int]:
        channels, height, width = condition.latents.shape[1:]
        return (channels, height, width)

    def start(self, conditions: Sequence[LatentCondition], members: int) -> Tensor:
        return repeated([c.latents for c in conditions], members)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return noised(x0, eps, self.alphas_cumprod.to(eps.device)[t.long()])

    def prediction(self, x_t: Tensor, t: Tensor, conditions: Sequence[LatentCondition]) -> Tensor:
        """The noise."""
        text = repeated([c.text for c in conditions if c.text is not None], len(x_t))
        out: Tensor = self.unet(x_t.to(self.dtype), self.t_diff, encoder_hidden_states=text, return_dict=False)[0]
        return out

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def clean(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        abar = float(self.alphas_cumprod[self.t_diff])
        x0: Tensor = (x_t - (1 - abar) ** 0.5 * prediction) / abar**0.5
        return x0

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor).sample
        return images
