"""A flux2sr preset: the small VAE, then the LR-conditioned flow.

    L = |v - (eps - x0)|^2 + charbonnier_weight Charbonnier(D(x_t - t v), HR) + lpips_weight LPIPS(...)

FoA-SR's loss (arXiv 2606.10275, eq. 1, weights unpublished). Latents of all pairs are cached first.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from learner.pretraining.supervised import (
    Log,
    Pairs,
    cache_pairs,
    charbonnier,
    cosine,
    descend,
    describe_vae,
    set_lr,
    train_vae,
)
from rl.config.pretrain import FlowPretrain, FlowStage
from rl.data.crops import CropSource
from rl.flow.schedule import interpolated
from rl.objectives.lpips import Lpips
from rl.policies.base import LatentCondition, from_uint8
from rl.policies.flux2sr.mini_vae import MiniVAE, running_statistics
from rl.policies.flux2sr.policy import Flux2SR, patchify
from rl.policies.flux2sr.section import Flux2SRSection
from rl.seeding import derive_seed


def make_flux2sr(config: FlowPretrain, lpips: Lpips, log: Log) -> str:
    """Train the VAE, then the flow; write a folder for `from_pretrained`, in fp16."""
    out = Path(config.out)
    vae = MiniVAE().to(config.device)
    train_vae(vae, CropSource(config.photos, config.seed), lpips, config.vae, config.scale, log)
    pairs = cache_pairs(vae, CropSource(config.photos, config.seed + 1), config)
    mean, var = running_statistics(vae.bn)
    mean.copy_(patchify(pairs.z_hr).mean((0, 2, 3)))
    var.copy_(patchify(pairs.z_hr).var((0, 2, 3)))
    policy = Flux2SR(build_transformer(config).to(config.device), vae, prompt_tokens(config), Flux2SRSection())
    train_flow(policy, pairs, lpips, config, log)
    vae.half().save_pretrained(out / "vae")
    policy.transformer.half().save_pretrained(out / "transformer")
    save_file({"prompt_embeds": prompt_tokens(config)}, out / "prompt_embeds.safetensors")
    return describe_flux2sr(config)


def describe_flux2sr(config: FlowPretrain) -> str:
    """The card's lines on the stages."""
    flow = config.flow
    return (
        f"{describe_vae(config.vae)}\nFlow: {flow.steps} steps of {flow.batch} out of {config.pairs} cached pairs, "
        f"flow matching + {flow.charbonnier_weight:g} Charbonnier +\n{flow.lpips_weight:g} LPIPS-squeeze (FoA-SR's "
        f"loss; the weights are ours), EMA {flow.ema_decay:g}."
    )


def build_transformer(config: FlowPretrain) -> Flux2Transformer2DModel:
    """Flux2Transformer2DModel at the preset's size; the output layer starts small, so v starts near 0."""
    size = config.transformer
    model = Flux2Transformer2DModel(
        in_channels=64,
        num_layers=size.num_layers,
        num_single_layers=size.num_single_layers,
        attention_head_dim=size.attention_head_dim,
        num_attention_heads=size.num_attention_heads,
        joint_attention_dim=size.joint_attention_dim,
        mlp_ratio=size.mlp_ratio,
        axes_dims_rope=size.axes_dims_rope,
        guidance_embeds=False,
    )
    with torch.no_grad():
        model.proj_out.weight.mul_(0.2)
    return model


def prompt_tokens(config: FlowPretrain) -> Tensor:
    """The preset's one cached prompt embedding: fixed random tokens, since it has no text encoder."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "prompt"))
    return torch.randn(config.transformer.prompt_tokens, config.transformer.joint_attention_dim, generator=generator)


def train_flow(policy: Flux2SR, pairs: Pairs, lpips: Lpips, config: FlowPretrain, log: Log) -> None:
    """Train the transformer in place; it ends up with the EMA weights."""
    stage, model = config.flow, policy.transformer
    model.requires_grad_(True).train()
    z_hr, z_lr = (policy.normalise(patchify(z)) for z in (pairs.z_hr, pairs.z_lr))
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    rng = np.random.default_rng(derive_seed(config.seed, "flow"))
    ema = [p.detach().clone() for p in model.parameters()]
    recent: list[float] = []
    for step in range(stage.steps):
        set_lr(optimizer, stage.lr * cosine(step, stage.steps, floor=0.01, warmup=stage.warmup_steps))
        index = torch.from_numpy(rng.integers(0, len(z_hr), stage.batch))
        loss, flow = _flow_loss(policy, pairs, z_hr, z_lr, index, lpips, stage, step)
        descend(loss, model, optimizer)
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
    policy: Flux2SR, pairs: Pairs, z_hr: Tensor, z_lr: Tensor, index: Tensor, lpips: Lpips, stage: FlowStage,
    step: int,
) -> tuple[Tensor, float]:  # fmt: skip
    x0 = z_hr[index]
    eps = torch.randn_like(x0)
    # stratified noise levels: every batch covers [0, 1] evenly
    t = (torch.rand(1) + torch.arange(len(index)) / len(index)).remainder(1.0).to(x0.device)
    x_t = interpolated(x0, eps, t)
    conditions = [LatentCondition(z_lr[i][None]) for i in index]
    v = policy.prediction(x_t, t, conditions)
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
