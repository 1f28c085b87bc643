"""Flux2SR (FoA-SR, arXiv 2606.10275): FLUX.2's transformer with the LR image as reference tokens.

    tokens = [ noisy target (T = 0) | clean LR latents (T = 10) ],  ids (T, H, W, L),  v = model(tokens)[:, :N_target]

The LR image is enlarged bicubically to the output size and encoded by the VAE; latents are patchified 2x2 and
normalised with the VAE's batch-norm statistics, as in diffusers' Flux2Pipeline. One class serves the embedded `mini`
weights and FLUX.2-dev: only the folder differs. Left out: the text encoder (one cached prompt embedding is loaded).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from rl.errors import InputError
from rl.flow.schedule import flow_sigmas
from rl.policies.base import FlowPolicy, LatentCondition, enlarged, from_uint8, repeated
from rl.policies.flux2sr.mini_vae import MiniVAE, running_statistics
from rl.policies.flux2sr.section import Flux2SRSection
from rl.policies.recompute import enable_recomputation
from rl.types import U8, Enlargement

VAE_CLASSES: dict[str, type[MiniVAE] | type[AutoencoderKLFlux2]] = {
    "MiniVAE": MiniVAE,
    "AutoencoderKLFlux2": AutoencoderKLFlux2,
}
REFERENCE_T = 10
"""T coordinate of the first reference image in FLUX.2's position ids."""


def patchify(z: Tensor) -> Tensor:
    """`[B, C, 2h, 2w]` -> `[B, 4C, h, w]`, channel order (C, dy, dx) as in Flux2Pipeline."""
    return nn.functional.pixel_unshuffle(z, 2)


def unpatchify(z: Tensor) -> Tensor:
    """Inverse of `patchify`."""
    return nn.functional.pixel_shuffle(z, 2)


def position_ids(height: int, width: int, t: int) -> Tensor:
    """`[h * w, 4]` int64 rows (T, H, W, L) in raster order."""
    grid = torch.cartesian_prod(torch.tensor([t]), torch.arange(height), torch.arange(width), torch.tensor([0]))
    return grid.reshape(-1, 4)


class Flux2SR(FlowPolicy):
    """The policy; `rl.policies.base.Policy` documents each method."""

    section: Flux2SRSection

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        vae: MiniVAE | AutoencoderKLFlux2,
        prompt_embeds: Tensor,
        section: Flux2SRSection,
    ) -> None:
        text_dim = transformer.config.joint_attention_dim
        if prompt_embeds.ndim != 2 or prompt_embeds.shape[1] != text_dim:
            raise InputError(f"prompt_embeds: expected [L, {text_dim}], got {tuple(prompt_embeds.shape)}")
        self.section = section
        self.transformer = transformer.requires_grad_(False)
        self.modules = {"transformer": transformer}
        self.vae = vae.requires_grad_(False).eval()
        self.device = next(transformer.parameters()).device
        self.dtype = next(transformer.parameters()).dtype
        self._prompt = prompt_embeds.to(self.device, self.dtype)[None]
        length = prompt_embeds.shape[0]
        self._text_ids = torch.zeros(length, 4, dtype=torch.long, device=self.device)
        self._text_ids[:, 3] = torch.arange(length)
        self._guidance = (
            (1.0 if section.guidance is None else section.guidance) if (transformer.config.guidance_embeds) else None
        )
        mean, var = running_statistics(vae.bn)
        self._mean = mean.view(1, -1, 1, 1)
        self._std: Tensor = (var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()

    @classmethod
    def from_folder(cls, folder: Path, section: Flux2SRSection) -> "Flux2SR":
        """Load transformer/, vae/ and prompt_embeds.safetensors from a local diffusers folder."""
        dtype = getattr(torch, section.dtype)
        vae_config = MiniVAE.load_config(folder / "vae")
        vae_class = VAE_CLASSES.get(vae_config["_class_name"])
        if vae_class is None:
            raise InputError(f"{folder}/vae: expected one of {sorted(VAE_CLASSES)}, got {vae_config['_class_name']}")
        transformer = Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)
        vae = vae_class.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        file = section.prompt_file(folder)
        prompts = load_file(file)
        if "prompt_embeds" not in prompts:
            raise InputError(f"{file}: expected a tensor prompt_embeds, got {sorted(prompts)}")
        if section.gradient_checkpointing:
            enable_recomputation(transformer)
        return cls(transformer.to(section.device), vae.to(section.device), prompts["prompt_embeds"], section)

    @torch.no_grad()
    def condition(
        self, lr: U8, scale: int, prompt: str = "", *, enlargement: Enlargement = "bicubic"
    ) -> LatentCondition:
        if prompt:
            raise InputError(f"prompt: got '{prompt}', but flux2sr has one cached embedding for all images")
        large = enlarged(lr, scale, self.section.size_multiple, enlargement).to(self.device, self.dtype)
        return LatentCondition(self._normalised_latents(large))

    @torch.no_grad()
    def encode_hr(self, hr: U8) -> Tensor:
        pixels = from_uint8(torch.from_numpy(np.array(hr))).to(self.device, self.dtype)
        return self._normalised_latents(pixels)

    def _normalised_latents(self, pixels: Tensor) -> Tensor:
        return self.normalise(patchify(self.vae.encode(pixels).latent_dist.mode()))

    def normalise(self, z: Tensor) -> Tensor:
        """Patchified latents `[B, 4C, h, w]` -> zero mean, unit variance by the VAE's statistics."""
        return (z - self._mean) / self._std

    def latent_shape(self, condition: LatentCondition) -> tuple[int, int, int]:
        channels: int = self.transformer.config.in_channels
        height, width = condition.latents.shape[2:]
        return (channels, height, width)

    def levels(self, steps: int, condition: LatentCondition) -> Tensor:
        return flow_sigmas(steps, shift=self.section.shift, tokens=condition.latents[0, 0].numel())

    def prediction(self, x_t: Tensor, t: Tensor, conditions: Sequence[LatentCondition]) -> Tensor:
        """The velocity v = eps - x0."""
        reference = _pack(repeated([c.latents for c in conditions], len(x_t)))
        height, width = x_t.shape[2:]
        target = position_ids(height, width, 0)
        ids = torch.cat([target, position_ids(height, width, REFERENCE_T)]).to(self.device)
        guidance = None if self._guidance is None else t.new_full((len(t),), self._guidance)
        out = self.transformer(
            hidden_states=torch.cat([_pack(x_t.to(self.dtype)), reference.to(self.dtype)], dim=1),
            encoder_hidden_states=self._prompt.expand(len(x_t), -1, -1),
            timestep=t.to(self.dtype),
            img_ids=ids,
            txt_ids=self._text_ids,
            guidance=guidance,
            return_dict=False,
        )[0]
        return _unpack(out[:, : len(target)], height, width)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.dtype) * self._std + self._mean
        images: Tensor = self.vae.decode(unpatchify(z)).sample
        return images


def _pack(z: Tensor) -> Tensor:
    return z.flatten(2).transpose(1, 2)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
