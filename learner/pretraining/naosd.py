"""A naosd preset (GDPO-SR, arXiv 2603.16769): a KL autoencoder, a multi-step teacher, the one-step student.

    teacher   mean (e(z_t, t, text) - eps)^2                                  t ~ U[0, T)
    student   pixel(y, HR) + lpips_weight LPIPS(y, HR) + vsd_weight VSD(x0)    y = D(x0), x0 by NAOSD's one step
    fake      mean (e_fake(x0_t, t, text) - eps)^2                            after every student step, t ~ U[0, T)

As published the student is the teacher with LoRA on the UNet and on the VAE's encoder and a trained conv_in; the real
score is the teacher under classifier-free guidance, the fake score is the teacher with a LoRA. The teacher of the
paper is Stable Diffusion 2.1; a preset trains its own.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.pretraining.supervised import Log, Pairs, cache_pairs, cosine, descend, set_lr, train_vae
from rl.config.policy import UNET_ALL
from rl.config.pretrain import NAOSDPretrain, StudentStage
from rl.data.crops import CropSource
from rl.objectives.vsd import add_noise, guided, predicted_x0, vsd_loss
from rl.perceptual import LpipsSqueeze
from rl.policies.base import Condition, from_uint8
from rl.policies.lora import target_modules
from rl.policies.naosd.policy import NAOSD
from rl.policies.naosd.text import CachedPrompt
from rl.seeding import derive_seed

VAE_ENCODER = ("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "to_q", "to_k", "to_v", "to_out.0")


def make_naosd(config: NAOSDPretrain, lpips: LpipsSqueeze, log: Log) -> None:
    """Train the three stages; write the folder that `from_pretrained` reads, in fp16."""
    out = Path(config.out)
    vae = build_vae(config).to(config.device)
    train_vae(vae, CropSource(config.photos, config.seed), lpips, config.vae, config.scale, log)
    pairs = cache_pairs(vae, CropSource(config.photos, config.seed + 1), config)
    vae.register_to_config(scaling_factor=float(1 / pairs.z_hr.std()))
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    teacher = build_unet(config).to(config.device)
    train_teacher(teacher, pairs.z_hr * vae.config.scaling_factor, scheduler, config, log)
    student = build_student(teacher, vae, scheduler, config)
    train_student(student, teacher, pairs, lpips, scheduler, config, log)
    for model, name in ((student.vae, "vae"), (student.backbone, "unet")):
        model.fuse_lora()
        model.unload_lora()
        model.half().save_pretrained(out / name)
    scheduler.save_pretrained(out / "scheduler")
    save_file({"prompt_embeds": prompts(config)[0]}, out / "prompt_embeds.safetensors")


def build_vae(config: NAOSDPretrain) -> AutoencoderKL:
    """AutoencoderKL at the preset's size, 8x."""
    size = config.vae_size
    return AutoencoderKL(
        block_out_channels=size.block_out_channels, latent_channels=size.latent_channels, layers_per_block=1,
        norm_num_groups=8, sample_size=config.crop, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def build_unet(config: NAOSDPretrain) -> UNet2DConditionModel:
    """UNet2DConditionModel at the preset's size, attention at all levels but the last as in Stable Diffusion."""
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
    """`[2, L, D]` positive and negative prompt embedding: fixed random tokens, since a preset has no text encoder."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "prompt"))
    return torch.randn(2, config.unet.prompt_tokens, config.unet.cross_attention_dim, generator=generator)


def train_teacher(
    teacher: UNet2DConditionModel, z: Tensor, scheduler: DDPMScheduler, config: NAOSDPretrain, log: Log
) -> None:
    """Train in place on scaled HR latents `[N, C, h, w]`."""
    stage, text = config.teacher, prompts(config).to(z.device)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    rng = np.random.default_rng(derive_seed(config.seed, "teacher"))
    recent: list[float] = []
    teacher.train()
    for step in range(stage.steps):
        set_lr(optimizer, stage.lr * cosine(step, stage.steps, floor=0.01, warmup=stage.warmup_steps))
        x0 = z[torch.from_numpy(rng.integers(0, len(z), stage.batch))]
        negative = torch.rand(stage.batch, device=z.device) < stage.drop_prompt
        loss = _noise_loss(teacher, x0, text[negative.long()], scheduler)
        descend(loss, teacher, optimizer)
        recent = [*recent[-199:], float(loss.detach())]
        if step % 250 == 249:
            log(f"teacher {step + 1}/{stage.steps}: noise error {np.mean(recent):.4f}")
    teacher.requires_grad_(False).eval()


def build_student(
    teacher: UNet2DConditionModel, vae: AutoencoderKL, scheduler: DDPMScheduler, config: NAOSDPretrain
) -> NAOSD:
    """A copy of the teacher and the VAE with LoRA on them and conv_in free."""
    stage, out = config.student, Path(config.out)
    unet = copy.deepcopy(teacher)
    prompt = CachedPrompt(prompts(config)[0].to(config.device), out)
    student = NAOSD(unet, vae, scheduler, prompt, t_add=config.t_add, t_diff=config.t_diff)
    layers = [name for name in target_modules(unet, UNET_ALL) if name != "conv_in"]
    unet.add_adapter(_lora(stage.lora_rank, stage.lora_alpha, layers), "student")
    unet.conv_in.requires_grad_(True)
    encoder = [name for name in target_modules(vae, VAE_ENCODER) if name.startswith("encoder.")]
    vae.add_adapter(_lora(stage.lora_rank, stage.lora_alpha, [*encoder, "quant_conv"]), "student")
    return student


def train_student(
    student: NAOSD,
    teacher: UNet2DConditionModel,
    pairs: Pairs,
    lpips: LpipsSqueeze,
    scheduler: DDPMScheduler,
    config: NAOSDPretrain,
    log: Log,
) -> None:
    """Train the student's adapters in place, the fake score beside them."""
    stage = config.student
    fake = copy.deepcopy(teacher)
    fake.add_adapter(_lora(stage.fake_rank, stage.lora_alpha, target_modules(fake, UNET_ALL)), "fake")
    both = nn.ModuleList([student.backbone, student.vae])
    optimizer, fake_optimizer = (_adamw(model, lr, stage) for model, lr in ((both, stage.lr), (fake, stage.fake_lr)))
    rng = np.random.default_rng(derive_seed(config.seed, "student"))
    text = prompts(config).to(student.device)
    recent: list[list[float]] = []
    for step in range(stage.steps):
        factor = cosine(step, stage.steps, floor=0.02, warmup=stage.warmup_steps)
        set_lr(optimizer, stage.lr * factor)
        index = torch.from_numpy(rng.integers(0, len(pairs.hr), stage.batch))
        hr, lr = (from_uint8(side[index]).to(student.device) for side in (pairs.hr, pairs.lr))
        x0 = one_step(student, lr, text[0])
        y = student.decode(x0)
        pixel = nn.functional.mse_loss(y, hr) if stage.pixel == "l2" else nn.functional.l1_loss(y, hr)
        perceptual = lpips(y, hr).mean()
        distilled = distil(x0, teacher, fake, text, scheduler, stage)
        loss = stage.pixel_weight * pixel + stage.lpips_weight * perceptual + stage.vsd_weight * distilled
        descend(loss, both, optimizer)
        fake_loss = _noise_loss(fake, x0.detach(), text[:1].expand(len(x0), -1, -1), scheduler)
        descend(fake_loss, fake, fake_optimizer)
        recent = [*recent[-99:], [float(value.detach()) for value in (pixel, perceptual, distilled, fake_loss)]]
        if step % 100 == 99:
            shown = ", ".join(f"{v:.4f}" for v in np.mean(recent, axis=0))
            log(f"student {step + 1}/{stage.steps}: pixel, LPIPS, VSD, fake {shown}")
    both.requires_grad_(False).eval()


def one_step(student: NAOSD, lr: Tensor, text: Tensor) -> Tensor:
    """x0 `[B, C, h, w]` of enlarged LR images `[B, 3, H, W]` in [-1, 1], with a gradient to encoder and UNet."""
    z = student.vae.encode(lr).latent_dist.mode() * student.vae.config.scaling_factor
    z_t = student.noised(z, torch.randn_like(z))
    conditions = [Condition(z[i : i + 1].detach(), text[None]) for i in range(len(z))]
    return student.clean(z_t, student.epsilon(z_t, conditions))


def distil(
    x0: Tensor, teacher: nn.Module, fake: nn.Module, text: Tensor, scheduler: DDPMScheduler, stage: StudentStage
) -> Tensor:
    """The VSD loss of the student's latents; `text` `[2, L, D]` positive and negative."""
    low, high = (int(share * scheduler.config.num_train_timesteps) for share in stage.t_range)
    t = torch.randint(low, high, (len(x0),), device=x0.device)
    abar = scheduler.alphas_cumprod.to(x0.device)[t]
    positive, negative = (row.expand(len(x0), -1, -1) for row in text)
    with torch.no_grad():
        z_t = add_noise(x0, torch.randn_like(x0), abar)
        e_fake = _predict(fake, z_t, t, positive)
        e_real = guided(_predict(teacher, z_t, t, negative), _predict(teacher, z_t, t, positive), stage.guidance)
        fake_x0, real_x0 = (predicted_x0(z_t, e, abar) for e in (e_fake, e_real))
    return vsd_loss(x0, fake_x0, real_x0)


def _noise_loss(unet: nn.Module, x0: Tensor, text: Tensor, scheduler: DDPMScheduler) -> Tensor:
    t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    z_t = add_noise(x0, eps, scheduler.alphas_cumprod.to(x0.device)[t])
    return (_predict(unet, z_t, t, text) - eps).square().mean()


def _predict(unet: nn.Module, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    out: Tensor = unet(z_t, t, encoder_hidden_states=text, return_dict=False)[0]
    return out


def _lora(rank: int, alpha: float, layers: list[str]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=layers)


def _adamw(model: nn.Module, lr: float, stage: StudentStage) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=stage.weight_decay)


def describe_naosd(config: NAOSDPretrain) -> str:
    """The card's lines on the later stages."""
    teacher, student = config.teacher, config.student
    return (
        f"Teacher: {teacher.steps} steps of {teacher.batch} out of {config.pairs} cached latents, eps-prediction.\n"
        f"Student: {student.steps} steps of {student.batch}, {student.pixel_weight:g} {student.pixel.upper()} + "
        f"{student.lpips_weight:g} LPIPS-squeeze + {student.vsd_weight:g} VSD,\nLoRA rank {student.lora_rank} "
        f"on UNet and encoder, t_add {config.t_add}, t_diff {config.t_diff}."
    )
