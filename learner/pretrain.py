"""`isrl pretrain`: make an embedded preset from photographs, score it on held-out ones, write its card."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.supervised import cache_pairs, to_tensor, train_flow, train_vae
from rl.config.pretrain import PretrainConfig
from rl.data.crops import CropSource
from rl.data.degradation import degrade
from rl.data.photos import load_photos
from rl.errors import MissingInput
from rl.flow.sampler import sample
from rl.flow.schedule import flow_sigmas
from rl.perceptual import LpipsSqueeze
from rl.policies.base import from_uint8, member_noise, to_uint8
from rl.policies.flux2sr.mini_vae import MiniVAE
from rl.policies.flux2sr.policy import Flux2SR
from rl.seeding import derive_seed
from rl.types import U8

CROPS_PER_PHOTO = 6
SAMPLES = 4
_BT601 = (65.481, 128.553, 24.966)


def pretrain(config: PretrainConfig) -> Path:
    """Train the VAE, then the flow, score, and write the preset's folder; returns it."""
    torch.set_num_threads(config.threads)
    # subnormal moments of still untouched layers make AdamW on a CPU several times slower
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    lpips = LpipsSqueeze(_weights(config.lpips.backbone), _weights(config.lpips.heads)).to(config.device)
    held_out = held_out_crops(config)
    out = Path(config.out)
    vae = MiniVAE().to(config.device)
    train_vae(vae, CropSource(config.photos, config.seed), lpips, config.vae, config.scale, _log)
    pairs = cache_pairs(vae, CropSource(config.photos, config.seed + 1), config)
    policy = Flux2SR(build_transformer(config).to(config.device), vae, prompt_tokens(config))
    train_flow(policy, pairs, lpips, config, _log)
    vae.save_pretrained(out / "vae")
    policy.backbone.save_pretrained(out / "transformer")
    save_file({"prompt_embeds": prompt_tokens(config)}, out / "prompt_embeds.safetensors")
    scores = score(policy, held_out, lpips, config, out / "contact_sheet.png")
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    _log(json.dumps(scores))
    return out


def build_transformer(config: PretrainConfig) -> Flux2Transformer2DModel:
    """Flux2Transformer2DModel at the preset's size; the output layer starts small, so that v starts near 0."""
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


def prompt_tokens(config: PretrainConfig) -> Tensor:
    """The preset's one cached prompt embedding: fixed random tokens, since it has no text encoder."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "prompt"))
    return torch.randn(config.transformer.prompt_tokens, config.transformer.joint_attention_dim, generator=generator)


def held_out_crops(config: PretrainConfig) -> list[tuple[U8, U8]]:
    """(HR `[H, W, 3]`, LR) of evenly spread crops of every held-out photograph."""
    found = []
    for name, photo in load_photos(config.held_out).items():
        rows = np.linspace(0, photo.shape[0] - config.crop, 2).astype(int)
        columns = np.linspace(0, photo.shape[1] - config.crop, CROPS_PER_PHOTO // 2).astype(int)
        for y, x in ((int(y), int(x)) for y in rows for x in columns):
            hr = np.ascontiguousarray(photo[y : y + config.crop, x : x + config.crop])
            seed = derive_seed("held-out", name, y, x)
            found.append((hr, degrade(hr, scale=config.scale, recipe=config.recipe, seed=seed)))
    return found


def psnr_y(x: Tensor, y: Tensor) -> Tensor:
    """PSNR of the BT.601 luma of images `[B, 3, H, W]` in [-1, 1]; `[B]` in dB."""
    weights = x.new_tensor(_BT601).view(1, 3, 1, 1) / 2
    mse = ((x - y) * weights).sum(1).square().mean((1, 2))
    return 10 * torch.log10(255.0**2 / mse)


@torch.no_grad()
def score(
    policy: Flux2SR, crops: list[tuple[U8, U8]], lpips: LpipsSqueeze, config: PretrainConfig, sheet: Path
) -> dict[str, float]:
    """Single-sample PSNR(Y) and LPIPS-squeeze against bicubic, and how much the samples of a crop differ."""
    hr = to_tensor([pair[0] for pair in crops])
    lr = to_tensor([pair[1] for pair in crops])
    bicubic = nn.functional.interpolate(lr, scale_factor=config.scale, mode="bicubic").clamp(-1, 1)
    conditions = [policy.encode(np.ascontiguousarray(pair[1].transpose(2, 0, 1)), config.scale) for pair in crops]
    shape = policy.latent_shape(conditions[0])
    sigmas = flow_sigmas(config.sampler_steps, shift=1.0, tokens=shape[1] * shape[2])
    samples = []
    for k in range(SAMPLES):
        noise = member_noise([derive_seed("held-out", i, k) for i in range(len(crops))], shape, policy.device)
        latents = sample(lambda x, s: policy.velocity(x, x.new_full((len(x),), s), conditions), noise, sigmas, "dpm2")
        samples.append(from_uint8(to_uint8(policy.decode(latents))))
    group = torch.stack([psnr_y(x, hr) for x in samples])
    _write_sheet(sheet, [bicubic, *samples, hr], lr, config.scale)
    return {
        "crops": float(len(crops)),
        "bicubic_psnr_y": float(psnr_y(bicubic, hr).mean()),
        "sample_psnr_y": float(group.mean()),
        "bicubic_lpips_squeeze": float(lpips(bicubic, hr).mean()),
        "sample_lpips_squeeze": float(torch.stack([lpips(x, hr) for x in samples]).mean()),
        "group_std_psnr_y": float(group.std(0).mean()),
        "between_samples_psnr_y": float(psnr_y(samples[0], samples[1]).mean()),
    }


def _write_sheet(path: Path, columns: list[Tensor], lr: Tensor, scale: int) -> None:
    """Rows of crops: LR (nearest), bicubic, samples, HR."""
    enlarged = nn.functional.interpolate(lr, scale_factor=scale, mode="nearest")
    every = max(1, len(lr) // 8)
    rows = [torch.cat([column[i] for column in (enlarged, *columns)], dim=2) for i in range(0, len(lr), every)]
    image = to_uint8(torch.cat(rows, dim=1)).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(path)


def _weights(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingInput(f"lpips: no such weights file {path}")
    return path


def _log(line: str) -> None:
    print(line, flush=True)
