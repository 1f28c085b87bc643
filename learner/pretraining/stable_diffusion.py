"""A small multi-step model in Stable Diffusion's layout, trained on photographs alone, from which NAOSD is distilled.

    vae       Charbonnier + lpips_weight LPIPS + kl_weight KL             AutoencoderKL, 8x
    teacher   mean (e(z_t, t, text) - eps)^2,  t ~ U[0, T)                UNet2DConditionModel on the HR latents

A preset has no text encoder: its positive and negative prompts are two fixed embeddings.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.pretraining.near_identity import start_near_identity
from learner.pretraining.supervised import Log, cosine, descend, set_lr, to_tensor, train_vae
from rl.config.pretrain import NAOSDPretrain
from rl.data.crops import CropSource
from rl.flow.ddpm import noised
from rl.objectives.lpips import Lpips
from rl.seeding import derive_seed


def make_base(config: NAOSDPretrain, lpips: Lpips, log: Log) -> Path:
    """Train both stages and write vae/, unet/, scheduler/ and prompt_embeds.safetensors in fp16; returns the folder."""
    folder = Path(config.out) / "base"
    vae = build_vae(config).to(config.device)
    start_near_identity(vae)
    train_vae(vae, CropSource(config.photos, config.seed), lpips, config.vae, config.scale, log)
    # round to fp16 first, so that what trains on these latents sees the encoder and decoder as written
    vae.half().float()
    z = cache_latents(vae, CropSource(config.photos, config.seed + 1), config)
    vae.register_to_config(scaling_factor=float(1 / z.std()))
    vae.half().save_pretrained(folder / "vae")
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    teacher = build_unet(config).to(config.device)
    embeds = prompts(config)
    train_teacher(teacher, z * vae.config.scaling_factor, embeds.to(config.device), scheduler, config, log)
    teacher.half().save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    save_file(
        {"prompt_embeds": embeds[0].clone(), "negative_prompt_embeds": embeds[1].clone()},
        folder / "prompt_embeds.safetensors",
    )
    return folder


def build_vae(config: NAOSDPretrain) -> AutoencoderKL:
    """AutoencoderKL at the preset's size, 8x."""
    size = config.vae_size
    return AutoencoderKL(
        block_out_channels=size.block_out_channels, latent_channels=size.latent_channels, layers_per_block=1,
        norm_num_groups=1, sample_size=config.crop, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, source: CropSource, config: NAOSDPretrain) -> Tensor:
    """Posterior means `[N, C, h, w]` of `config.pairs` HR crops."""
    parts = []
    for first in range(0, config.pairs, 64):
        crops = [source.crop(config.crop) for _ in range(min(64, config.pairs - first))]
        parts.append(vae.encode(to_tensor(crops).to(config.device)).latent_dist.mode())
    return torch.cat(parts)


def build_unet(config: NAOSDPretrain) -> UNet2DConditionModel:
    """UNet2DConditionModel at the preset's size, with attention at all levels but the last, as in Stable Diffusion."""
    size, levels = config.unet, len(config.unet.block_out_channels)
    return UNet2DConditionModel(
        in_channels=config.vae_size.latent_channels, out_channels=config.vae_size.latent_channels,
        block_out_channels=size.block_out_channels, layers_per_block=size.layers_per_block,
        attention_head_dim=size.attention_head_dim, cross_attention_dim=size.cross_attention_dim,
        norm_num_groups=8, use_linear_projection=True, sample_size=config.crop // 8,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )  # fmt: skip


def prompts(config: NAOSDPretrain) -> Tensor:
    """`[2, L, D]`, positive and negative prompt embedding: fixed random tokens."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "prompt"))
    return torch.randn(2, config.unet.prompt_tokens, config.unet.cross_attention_dim, generator=generator)


def train_teacher(
    teacher: UNet2DConditionModel, z: Tensor, text: Tensor, scheduler: DDPMScheduler, config: NAOSDPretrain, log: Log
) -> None:
    """Train in place on scaled HR latents `z` `[N, C, h, w]`; `text` `[2, L, D]`: positive and negative."""
    stage = config.teacher
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    rng = np.random.default_rng(derive_seed(config.seed, "teacher"))
    recent: list[float] = []
    teacher.train()
    for step in range(stage.steps):
        set_lr(optimizer, stage.lr * cosine(step, stage.steps, floor=0.01, warmup=stage.warmup_steps))
        x0 = z[torch.from_numpy(rng.integers(0, len(z), stage.batch))]
        negative = torch.rand(stage.batch, device=z.device) < stage.drop_prompt
        loss = noise_loss(teacher, x0, text[negative.long()], scheduler)
        descend(loss, teacher, optimizer)
        recent = [*recent[-199:], float(loss.detach())]
        if step % 250 == 249:
            log(f"teacher {step + 1}/{stage.steps}: noise error {np.mean(recent):.4f}")
    teacher.requires_grad_(False).eval()


def noise_loss(unet: nn.Module, x0: Tensor, text: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """mean (e(z_t, t, text) - eps)^2 at t ~ U[0, T); x0 `[B, C, h, w]`, text `[B, L, D]`."""
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    z_t = noised(x0, eps, scheduler.alphas_cumprod.to(x0.device)[t])
    return (predict(unet, z_t, t, text) - eps).square().mean()


def predict(unet: nn.Module, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """e(z_t, t, text) `[B, C, h, w]`."""
    out: Tensor = unet(z_t, t, encoder_hidden_states=text, return_dict=False)[0]
    return out
