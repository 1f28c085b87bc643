"""`isrl pretrain`: make an embedded preset from photographs, score what was written on held-out ones, write a card."""

import json
import time
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from learner.pretrain_report import card, held_out_crops, score
from learner.supervised import cache_pairs, train_flow, train_vae
from rl.config.policy import PolicyConfig
from rl.config.pretrain import PretrainConfig
from rl.data.crops import CropSource
from rl.errors import MissingInput
from rl.perceptual import LpipsSqueeze
from rl.policies.flux2sr.mini_vae import MiniVAE
from rl.policies.flux2sr.policy import Flux2SR
from rl.seeding import derive_seed


def pretrain(config: PretrainConfig, source: str) -> Path:
    """Train the VAE, then the flow; write the preset's folder with scores and card, and return it.

    `source` is how the recipe was called (file and overrides); the card repeats it.
    """
    started = time.monotonic()
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
    _write(policy, prompt_tokens(config), out)
    minutes = (time.monotonic() - started) / 60
    written = Flux2SR.from_folder(out, PolicyConfig(path=str(out), device=config.device))
    scores = score(written, held_out, lpips, config, out / "contact_sheet.png")
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    (out / "README.md").write_text(card(config, source, scores, minutes, written), encoding="utf-8")
    _log(json.dumps(scores))
    return out


def _write(policy: Flux2SR, prompt_embeds: Tensor, out: Path) -> None:
    """The folder that `from_pretrained` reads, in fp16."""
    policy.vae.half().save_pretrained(out / "vae")
    policy.backbone.half().save_pretrained(out / "transformer")
    save_file({"prompt_embeds": prompt_embeds}, out / "prompt_embeds.safetensors")


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


def _weights(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise MissingInput(f"lpips: no such weights file {path}")
    return path


def _log(line: str) -> None:
    print(line, flush=True)
