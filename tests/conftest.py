"""Fixtures that more than one folder uses: stored images, tiny real models on disk, a run's configuration and groups.

Nothing here imports torch at the top, so that collecting the torch-free tests stays quick.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
TEXT_DIM = 12
PROMPT_TOKENS = 3


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with stored photographs and weights, which is not part of the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared test images and weights, {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def flux2_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes diffusers folders with FLUX.2's real classes at a tiny random size; arguments go to the transformer."""

    def make(**transformer: Any) -> Path:
        import torch
        from diffusers import AutoencoderKLFlux2

        torch.manual_seed(1)
        vae = AutoencoderKLFlux2(
            block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=32
        )
        return _write(tmp_path_factory.mktemp("flux2"), vae, **transformer)

    return make


@pytest.fixture(scope="session")
def tiny_flux2_folder(flux2_folder: Callable[..., Path]) -> Path:
    """FLUX.2's real transformer and VAE classes, tiny and random, without a guidance embedding."""
    return flux2_folder()


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded preset, or where a checkout has none a tiny random model of the same classes."""
    embedded = REPOSITORY / "rl" / "policies" / "flux2sr" / "weights" / "mini"
    if (embedded / "transformer" / "config.json").is_file():
        return embedded
    import torch

    from rl.policies.flux2sr.mini_vae import MiniVAE

    torch.manual_seed(2)
    vae = MiniVAE(4, (8, 8), (1, 1), (8, 8), (1, 1))
    return _write(tmp_path_factory.mktemp("mini"), vae)


def _write(folder: Path, vae: Any, **changes: Any) -> Path:
    import torch
    from diffusers import Flux2Transformer2DModel
    from safetensors.torch import save_file

    channels = 4 * vae.config.latent_channels
    size: dict[str, Any] = {
        "in_channels": channels,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_DIM,
        "timestep_guidance_channels": 16,
        "mlp_ratio": 2.0,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    torch.manual_seed(3)
    transformer = Flux2Transformer2DModel(**{**size, **changes})
    vae.bn.running_mean.copy_(0.3 * torch.randn(channels))
    vae.bn.running_var.copy_(0.5 + torch.rand(channels))
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    save_file({"prompt_embeds": torch.randn(PROMPT_TOKENS, TEXT_DIM)}, folder / "prompt_embeds.safetensors")
    return folder


@pytest.fixture
def run_config(tiny_flux2_folder: Path) -> Callable[..., Any]:
    """Builds a `RunConfig` on the tiny model from dotted overrides, `run_config("rollout.group_size=4")`."""

    def make(*overrides: str, path: Path = tiny_flux2_folder) -> Any:
        policy = {"path": str(path), "shift": 1.0, "lora": {"rank": 4, "alpha": 8}}
        return _recipe(overrides, policy=policy, rollout={"group_size": 4, "sampler": {"steps": 4}})

    return make


@pytest.fixture
def naosd_config(tiny_sd21_folder: Path) -> Callable[..., Any]:
    """The same for GDPO on the tiny Stable Diffusion."""

    def make(*overrides: str) -> Any:
        policy = {"type": "naosd", "path": str(tiny_sd21_folder), "lora": {"rank": 4, "alpha": 8}}
        return _recipe(overrides, policy=policy, objective={"type": "gdpo"}, rollout={"group_size": 4})

    return make


def _recipe(overrides: tuple[str, ...], **sections: Any) -> Any:
    from rl.config import load
    from rl.config.online import RunConfig

    raw: dict[str, Any] = {
        "data": {"path": ["skimage:camera"]},
        "rewards": [{"name": "lr_consistency", "type": "lr_consistency"}],
        **sections,
    }
    for override in overrides:
        load.apply_override(raw, override)
    return load.validate(RunConfig, raw, "test")


@pytest.fixture(scope="session")
def make_group() -> Callable[..., Any]:
    """A group of random pixels and latents of the tiny policies, 32 px a side; by default 4 members."""
    import numpy as np

    from rl.types import RolloutGroup, SRTask, TrainGroup

    def make(
        ordinal: int,
        advantages: tuple[float, ...] = (-1.2, 0.1, 1.4, -0.3),
        *,
        version: int | None = None,
        latents: tuple[int, int, int] = (16, 2, 2),
    ) -> Any:
        rng = np.random.default_rng(ordinal)
        lr = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
        members = len(advantages)
        images = rng.integers(0, 256, (members, 3, 32, 32), dtype=np.uint8)
        x0 = rng.standard_normal((members, *latents)).astype(np.float32)
        x0.flags.writeable = False
        sampled = ordinal + 5 if version is None else version
        group = RolloutGroup(ordinal, "photo", sampled, "digest", tuple(range(members)), x0, images)
        return TrainGroup(SRTask(ordinal, "photo", lr, None, 4, 0), group, np.array(advantages))

    return make


@pytest.fixture(scope="session")
def tiny_sd21_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 2.1's real classes, tiny and random: UNet, VAE, CLIP encoder and tokenizer, DDPM schedule."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd21")
    torch.manual_seed(3)
    UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=TEXT_DIM, attention_head_dim=(2, 4),
        norm_num_groups=4, use_linear_projection=True, sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False).save_pretrained(
        folder / "scheduler"
    )
    vocabulary = _letters()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=TEXT_DIM, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=12, bos_token_id=len(vocabulary) - 2,
            eos_token_id=len(vocabulary) - 1,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    return folder


def _letters() -> dict[str, int]:
    """A vocabulary of single letters; its last two words begin and end a text."""
    letters = "abcdefghijklmnopqrstuvwxyz ,-8"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's real model and processor, tiny and random, sharp enough that images get different tags."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder, vocabulary = tmp_path_factory.mktemp("clip"), _letters()
    torch.manual_seed(4)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **size, "vocab_size": len(vocabulary), "max_position_embeddings": 24, "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
    }  # fmt: skip
    vision = {**size, "image_size": 16, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_pool() -> Callable[..., Path]:
    """Writes a pool of candidates: noisy versions of photographs, with their PSNR as a score."""
    return _write_pool


def _write_pool(folder: Path, *, images: int = 4, candidates: int = 3, hr: bool = True) -> Path:
    """`folder` with `images` LR crops of 16 pixels; candidate k has noise of standard deviation 6 (k + 1)."""
    import numpy as np
    import skimage.data
    from PIL import Image

    side, scale = 64, 4
    photo = np.asarray(skimage.data.astronaut())
    rng = np.random.default_rng(0)
    (folder / "img").mkdir(parents=True)
    lines = []
    for i in range(images):
        crop = photo[64 * i : 64 * i + side, 100 : 100 + side]
        Image.fromarray(crop).save(folder / f"img/hr{i}.png")
        Image.fromarray(crop).resize((side // scale, side // scale)).save(folder / f"img/lr{i}.png")
        names, psnr = [], []
        for k in range(candidates):
            noisy = np.clip(crop + rng.normal(0, 6 * (k + 1), crop.shape), 0, 255).round().astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"img/sr{i}_{k}.png")
            names.append(f"img/sr{i}_{k}.png")
            psnr.append(float(10 * np.log10(255**2 / np.square(noisy.astype(float) - crop).mean())))
        record = {"lr": f"img/lr{i}.png", "hr": f"img/hr{i}.png" if hr else None, "scale": scale, "prompt": ""}
        lines.append(json.dumps({**record, "candidates": names, "scores": {"psnr": psnr}}))
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    return folder
