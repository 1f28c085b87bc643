"""A group of 6 at 512x512 through NAOSD at the size of Stable Diffusion 2.1, random weights, seconds per stage.

    uv run python tests/benchmarks/bench_naosd_full.py [--side 512] [--group 6] [--threads 1] [--device cpu] [--smoke]

The paper reports 0.11 s per 512x512 image on one A100. Random weights take the same time as trained ones.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from rl.data.attributes import attribute_shares
from rl.data.photos import load_photos
from rl.policies.base import member_noise, to_uint8
from rl.policies.naosd.policy import NAOSD
from rl.policies.naosd.section import NAOSDSection
from rl.policies.naosd.text import CachedPrompt

SCALE, TOKENS = 4, 77
T = TypeVar("T")
FULL: dict[str, Any] = {
    "unet": {
        "sample_size": 64, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024,
    },
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
    "text": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
}  # fmt: skip
"""Stable Diffusion 2.1-base: UNet 866 M, VAE 84 M, OpenCLIP ViT-H's text tower."""
SMOKE: dict[str, Any] = {
    "unet": {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16, 16, 16), "attention_head_dim": 4,
        "cross_attention_dim": 16, "norm_num_groups": 4,
    },
    "vae": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "sample_size": 64, "norm_num_groups": 4},
    "text": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}  # fmt: skip


def build(section: NAOSDSection, size: dict[str, Any]) -> NAOSD:
    """NAOSD of random weights."""
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, use_linear_projection=True, **size["unet"])
    vae = AutoencoderKL(
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        **size["vae"],
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    prompt = CachedPrompt(torch.randn(TOKENS, size["unet"]["cross_attention_dim"]), Path("random"))
    return NAOSD(unet.to(section.device), vae.to(section.device), scheduler, prompt, section)


class StageClock:
    """Seconds by stage, in the order in which they were first timed."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    def __call__(self, stage: str, call: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = call()
        if self._device == "cuda":
            torch.cuda.synchronize()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        return result


@torch.no_grad()
def measure(section: NAOSDSection, size: dict[str, Any], side: int, group: int) -> dict[str, float]:
    clock = StageClock(section.device)
    config = CLIPTextConfig(projection_dim=512, **size["text"])
    encoder = CLIPTextModel(config)
    clock("prompt (one)", lambda: encoder(torch.randint(0, config.vocab_size, (1, TOKENS))))
    policy = build(section, size)
    photo = load_photos(["skimage:astronaut"])["skimage:astronaut"]
    hr = np.ascontiguousarray(photo[:side, :side].transpose(2, 0, 1))
    lr = np.ascontiguousarray(hr[:, ::SCALE, ::SCALE])
    condition = clock("VAE encode LR (one)", lambda: policy.condition(lr, SCALE))
    noise = member_noise(range(group), policy.latent_shape(condition), policy.device)
    t = torch.full((group,), float(policy.t_add), device=policy.device)
    z_t = clock("noise (group)", lambda: policy.noised(policy.start([condition], group), noise, t))
    e = clock("UNet (group)", lambda: policy.prediction(z_t, t, [condition]))
    x0 = clock("x0 (group)", lambda: policy.clean(z_t, e, t))
    stage = "VAE decode (group, one at a time)"
    images = to_uint8(torch.cat([clock(stage, partial(policy.decode, x0[i : i + 1])) for i in range(group)]))
    for image in images.cpu().numpy():
        clock("VAE encode again for training (group)", partial(policy.encode_hr, image[None]))
    clock("attribute shares (one)", lambda: attribute_shares(hr))
    return clock.seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--group", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--smoke", action="store_true", help="models of a few thousand weights")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    section = NAOSDSection(device=options.device)
    seconds = measure(section, SMOKE if options.smoke else FULL, options.side, options.group)
    total = sum(seconds.values())
    print(f"{options.group} images of {options.side}x{options.side}, {options.threads} thread(s) on {options.device}")
    for stage, value in seconds.items():
        print(f"| {stage} | {value:.2f} s | {value / total:.1%} |")
    made = total - seconds["VAE encode again for training (group)"] - seconds["attribute shares (one)"]
    print(f"| all | {total:.1f} s | {made / options.group:.2f} s an image without the training part |")


if __name__ == "__main__":
    main()
