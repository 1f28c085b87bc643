"""The two supervised stages behind `isrl pretrain`: the VAE, then the LR-conditioned flow.

    VAE    L = Charbonnier(y, x) + lpips_weight LPIPS(y, x) + kl_weight KL
    flow   L = |v - (eps - x0)|^2 + charbonnier_weight Charbonnier(D(x_t - t v), HR) + lpips_weight LPIPS(...)

The flow loss is FoA-SR's (arXiv 2606.10275, eq. 1, weights unpublished). Latents of all pairs are cached first.
Single process, plain PyTorch: a few million parameters need no DeepSpeed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl.config.pretrain import FlowStage, PretrainConfig, VaeStage
from rl.data.crops import CropSource
from rl.data.degradation import degrade
from rl.objectives.nft import noised
from rl.perceptual import LpipsSqueeze
from rl.policies.base import Condition, from_uint8
from rl.policies.flux2sr.mini_vae import MiniVAE, running_statistics
from rl.policies.flux2sr.policy import Flux2SR, patchify
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


def train_vae(vae: MiniVAE, source: CropSource, lpips: LpipsSqueeze, stage: VaeStage, scale: int, log: Log) -> None:
    """Train in place."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=0.0)
    vae.train().to(memory_format=torch.channels_last)
    for step in range(stage.steps):
        _set_lr(optimizer, stage.lr * cosine(step, stage.steps, floor=0.02, warmup=100))
        crops = [source.vae_crop(stage.crop, stage.blurred_share, scale) for _ in range(stage.batch)]
        x = to_tensor(crops).to(vae.device)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        half = max(1, len(x) // 2)
        ramp = min(1.0, step / (0.1 * stage.steps))
        perceptual = ramp * stage.lpips_weight * lpips(y[:half], x[:half]).mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        _descend(charbonnier(y, x) + perceptual + stage.kl_weight * kl, vae, optimizer)
        if step % 100 == 99:
            log(f"vae {step + 1}/{stage.steps}: charbonnier {float(charbonnier(y, x)):.4f}")
    vae.eval()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Cached training pairs; latents are patchified, not yet normalised."""

    hr: Tensor
    """`[N, 3, H, W]` uint8"""
    z_hr: Tensor
    """`[N, C, h, w]`"""
    z_lr: Tensor
    """`[N, C, h, w]`"""


@torch.no_grad()
def cache_pairs(vae: MiniVAE, source: CropSource, config: PretrainConfig) -> Pairs:
    """Make pairs, encode both sides, and set the VAE's batch-norm statistics from the HR latents."""
    hr, z_hr, z_lr = [], [], []
    for first in range(0, config.flow.pairs, 64):
        count = min(64, config.flow.pairs - first)
        crops = [source.crop(config.crop) for _ in range(count)]
        seeds = [derive_seed(config.seed, "pair", first + i) for i in range(count)]
        lr = [degrade(c, scale=config.scale, recipe=config.recipe, seed=s) for c, s in zip(crops, seeds, strict=True)]
        enlarged = nn.functional.interpolate(to_tensor(lr), scale_factor=config.scale, mode="bicubic").clamp(-1, 1)
        z_hr.append(patchify(vae.encode(to_tensor(crops).to(vae.device)).latent_dist.mode()))
        z_lr.append(patchify(vae.encode(enlarged.to(vae.device)).latent_dist.mode()))
        hr.append(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
    pairs = Pairs(torch.cat(hr), torch.cat(z_hr), torch.cat(z_lr))
    mean, var = running_statistics(vae.bn)
    mean.copy_(pairs.z_hr.mean((0, 2, 3)))
    var.copy_(pairs.z_hr.var((0, 2, 3)))
    return pairs


def train_flow(policy: Flux2SR, pairs: Pairs, lpips: LpipsSqueeze, config: PretrainConfig, log: Log) -> None:
    """Train the transformer in place; it ends with the EMA weights."""
    stage, model = config.flow, policy.backbone
    model.requires_grad_(True).train()
    z_hr, z_lr = policy.normalise(pairs.z_hr), policy.normalise(pairs.z_lr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    rng = np.random.default_rng(derive_seed(config.seed, "flow"))
    ema = [p.detach().clone() for p in model.parameters()]
    recent: list[float] = []
    for step in range(stage.steps):
        _set_lr(optimizer, stage.lr * cosine(step, stage.steps, floor=0.01, warmup=stage.warmup_steps))
        index = torch.from_numpy(rng.integers(0, len(z_hr), stage.batch))
        loss, flow = _flow_loss(policy, pairs, z_hr, z_lr, index, lpips, stage, step)
        _descend(loss, model, optimizer)
        decay = min(stage.ema_decay, (2 + step) / (11 + step))
        with torch.no_grad():
            torch._foreach_lerp_(ema, [p.detach() for p in model.parameters()], 1 - decay)
        recent = [*recent[-199:], flow]
        if step % 250 == 249:
            log(f"flow {step + 1}/{stage.steps}: flow-matching loss {np.mean(recent):.4f}")
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ema, strict=True):
            parameter.copy_(value)
    model.requires_grad_(False).eval()


def _flow_loss(
    policy: Flux2SR, pairs: Pairs, z_hr: Tensor, z_lr: Tensor, index: Tensor, lpips: LpipsSqueeze, stage: FlowStage,
    step: int,
) -> tuple[Tensor, float]:  # fmt: skip
    x0 = z_hr[index]
    eps = torch.randn_like(x0)
    # stratified noise levels: every batch covers [0, 1] evenly
    t = (torch.rand(1) + torch.arange(len(index)) / len(index)).remainder(1.0).to(x0.device)
    x_t = noised(x0, eps, t)
    conditions = [Condition(z_lr[i][None]) for i in index]
    v = policy.velocity(x_t, t, conditions)
    flow = (v - (eps - x0)).square().mean()
    share = step / stage.steps
    if share < stage.image_from:
        return flow, float(flow.detach())
    shown = torch.arange(step % stage.image_every, len(index), stage.image_every)
    x0_hat = (x_t - t.view(-1, 1, 1, 1) * v)[shown]
    y, gt = policy.decode(x0_hat), from_uint8(pairs.hr[index[shown]]).to(x0.device)
    ramp = min(1.0, (share - stage.image_from) / max(1e-9, stage.lpips_full_from - stage.image_from))
    image = stage.charbonnier_weight * charbonnier(y, gt) + ramp * stage.lpips_weight * lpips(y, gt).mean()
    return flow + image, float(flow.detach())


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _descend(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
