"""What training any preset uses: the VAE stage, cached latent pairs, one optimiser step.

    VAE    L = Charbonnier(y, x) + lpips_weight LPIPS(y, x) + kl_weight KL

A single process in plain PyTorch: a few million parameters need no DeepSpeed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from rl.config.pretrain import FlowPretrain, VaeStage
from rl.data.crops import CropSource
from rl.data.degradation import degrade, target
from rl.objectives.lpips import Lpips
from rl.policies.base import from_uint8, to_uint8
from rl.seeding import derive_seed
from rl.types import U8

CHARBONNIER_EPS = 1e-6
Log = Callable[[str], None]


def charbonnier(x: Tensor, y: Tensor) -> Tensor:
    """mean sqrt((x - y)^2 + 1e-6)."""
    return ((x - y).square() + CHARBONNIER_EPS).sqrt().mean()


def cosine(step: int, steps: int, floor: float, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * decay


def to_tensor(images: list[U8]) -> Tensor:
    """`[H, W, 3]` images -> `[B, 3, H, W]` in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def train_vae(vae: ModelMixin, source: CropSource, lpips: Lpips, stage: VaeStage, scale: int, log: Log) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=0.0)
    vae.train().to(memory_format=torch.channels_last)
    for step in range(stage.steps):
        set_lr(optimizer, stage.lr * cosine(step, stage.steps, floor=0.02, warmup=100))
        crops = [source.vae_crop(stage.crop, stage.blurred_share, scale) for _ in range(stage.batch)]
        x = to_tensor(crops).to(vae.device)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        half = max(1, len(x) // 2)
        ramp = min(1.0, step / (0.1 * stage.steps))
        perceptual = ramp * stage.lpips_weight * lpips(y[:half], x[:half]).mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        descend(charbonnier(y, x) + perceptual + stage.kl_weight * kl, vae, optimizer)
        if step % 100 == 99:
            log(f"vae {step + 1}/{stage.steps}: charbonnier {float(charbonnier(y, x).detach()):.4f}")
    vae.eval()


def describe_vae(stage: VaeStage) -> str:
    """The card's line on `train_vae`."""
    return f"VAE: Charbonnier + {stage.lpips_weight:g} LPIPS + {stage.kl_weight:g} KL, {stage.summary}."


@dataclass(frozen=True, eq=False)
class Pairs:
    """Cached training pairs; latents are the VAE's posterior means."""

    hr: Tensor
    """`[N, 3, H, W]` uint8"""
    lr: Tensor
    """`[N, 3, H, W]` uint8, the bicubically enlarged LR image"""
    z_hr: Tensor
    """`[N, C, h, w]`"""
    z_lr: Tensor
    """`[N, C, h, w]`"""


@torch.no_grad()
def cache_pairs(vae: ModelMixin, source: CropSource, config: FlowPretrain) -> Pairs:
    """Make pairs and encode both sides."""
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for first in range(0, config.pairs, 64):
        count = min(64, config.pairs - first)
        crops = [source.crop(config.crop) for _ in range(count)]
        seeds = [derive_seed(config.seed, "pair", first + i) for i in range(count)]
        lr = [degrade(c, scale=config.scale, recipe=config.recipe, seed=s) for c, s in zip(crops, seeds, strict=True)]
        enlarged = nn.functional.interpolate(to_tensor(lr), scale_factor=config.scale, mode="bicubic").clamp(-1, 1)
        hr = to_tensor([target(c, config.recipe) for c in crops])
        z_hr, z_lr = (vae.encode(x.to(config.device)).latent_dist.mode() for x in (hr, enlarged))
        parts.append((to_uint8(hr), to_uint8(enlarged), z_hr, z_lr))
    return Pairs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def descend(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
