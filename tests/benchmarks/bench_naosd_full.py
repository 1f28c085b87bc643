"""A group of 6 at 512x512 through NAOSD at the size of Stable Diffusion 2.1, random weights, seconds per stage.

    uv run python tests/benchmarks/bench_naosd_full.py [--side 512] [--group 6] [--threads 1] [--device cpu]

The paper reports 0.11 s per 512x512 image on one A100. Random weights take the same time as trained ones.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from rl.attributes import attribute_shares
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from rl.data.photos import load_photos
from rl.policies.base import member_noise, to_uint8
from rl.policies.naosd.policy import NAOSD
from rl.policies.naosd.text import CachedPrompt

SCALE = 4
TOKENS, WIDTH = 77, 1024


def build(device: str) -> NAOSD:
    """Stable Diffusion 2.1-base's UNet (866 M) and VAE (84 M), randomly initialised."""
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20), cross_attention_dim=WIDTH, use_linear_projection=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    prompt = CachedPrompt(torch.randn(TOKENS, WIDTH), Path("random"))
    return NAOSD(unet.to(device), vae.to(device), scheduler, prompt, t_add=250, t_diff=100)


def text_seconds() -> float:
    """OpenCLIP ViT-H's text tower at SD2.1's size, one prompt."""
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512
    )
    encoder = CLIPTextModel(config).eval()
    started = time.perf_counter()
    encoder(torch.randint(0, 49408, (1, TOKENS)))
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--group", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, float] = {}

    def timed(stage: str, call: Callable[[], Tensor]) -> Tensor:
        started = time.perf_counter()
        result = call()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds[stage] = time.perf_counter() - started
        return result

    seconds["prompt (one)"] = text_seconds()
    policy = build(options.device)
    photo = load_photos(["skimage:astronaut"])["skimage:astronaut"]
    hr = np.ascontiguousarray(photo[: options.side, : options.side].transpose(2, 0, 1))
    lr = np.ascontiguousarray(hr[:, ::SCALE, ::SCALE])
    started = time.perf_counter()
    condition = policy.encode(lr, SCALE)
    seconds["VAE encode LR (one)"] = time.perf_counter() - started
    noise = member_noise(range(options.group), policy.latent_shape(condition), torch.device(options.device))
    z_t = timed("noise (group)", lambda: policy.noised(condition.latents, noise))
    e = timed("UNet (group)", lambda: policy.epsilon(z_t, [condition]))
    x0 = timed("x0 (group)", lambda: policy.clean(z_t, e))
    decode = [timed(f"decode {i}", lambda i=i: policy.decode(x0[i : i + 1])) for i in range(options.group)]
    seconds["VAE decode (group, one at a time)"] = sum(seconds.pop(f"decode {i}") for i in range(options.group))
    images = to_uint8(torch.cat(decode))
    for i in range(options.group):
        timed(f"again {i}", lambda i=i: policy.encode_hr(images[i : i + 1].cpu().numpy()))
    seconds["VAE encode again for training (group)"] = sum(seconds.pop(f"again {i}") for i in range(options.group))
    started = time.perf_counter()
    attribute_shares(hr)
    seconds["attribute shares (one)"] = time.perf_counter() - started
    total = sum(seconds.values())
    print(f"{options.group} images of {options.side}x{options.side}, {options.threads} thread(s) on {options.device}")
    for stage, value in seconds.items():
        print(f"| {stage} | {value:.2f} s | {value / total:.1%} |")
    made = total - seconds["VAE encode again for training (group)"] - seconds["attribute shares (one)"]
    print(f"| all | {total:.1f} s | {made / options.group:.2f} s an image without the training part |")


if __name__ == "__main__":
    main()
