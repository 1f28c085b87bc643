"""The small AutoencoderKL from diffusers' random start against the start near the identity: reconstruction by step.

    uv run python tests/benchmarks/bench_vae_start.py diffusers|near_identity [--steps 400] [--smoke]

Same data, loss and optimiser (configs/naosd_pretrain_mini.yaml); held-out Kodak crops, PSNR(Y) and LPIPS-squeeze.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from harness import ROOT

from learner.pretraining.near_identity import start_near_identity
from learner.pretraining.report import held_out_crops, psnr_y
from learner.pretraining.stable_diffusion import build_vae
from learner.pretraining.supervised import to_tensor, train_vae
from rl.config.load import load_pretrain_config
from rl.config.pretrain import NAOSDPretrain
from rl.data.crops import CropSource
from rl.objectives.lpips import Lpips

NORM_GROUPS = {"diffusers": 8, "near_identity": 1}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", choices=list(NORM_GROUPS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--smoke", action="store_true", help="two steps on two small crops")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    small = [
        "vae={steps: 2, batch: 2, crop: 32}",
        "photos=[{path: ['skimage:astronaut']}]",
        "held_out=['skimage:coffee']",
    ]
    overrides = small if arguments.smoke else [f"vae.steps={arguments.steps}"]
    config = load_pretrain_config(ROOT / "configs" / "naosd_pretrain_mini.yaml", overrides)
    assert isinstance(config, NAOSDPretrain)
    vae = build_vae(config)
    if arguments.start == "near_identity":
        start_near_identity(vae)
    else:
        changed = {**vae.config, "norm_num_groups": NORM_GROUPS["diffusers"]}
        vae = diffusers.AutoencoderKL.from_config(changed)
    lpips = Lpips(Path(config.lpips.backbone), Path(config.lpips.heads))
    hr = to_tensor([pair[0] for pair in held_out_crops(config)])
    started = time.perf_counter()

    def report(_: str) -> None:
        with torch.no_grad():
            y = vae.decode(vae.encode(hr).latent_dist.mode()).sample.clamp(-1, 1)
        scores = f"PSNR(Y) {psnr_y(y, hr).mean():.2f} LPIPS {lpips(y, hr).mean():.3f}"
        print(f"{arguments.start}: {scores} after {time.perf_counter() - started:.0f} s", flush=True)

    report("")
    train_vae(vae, CropSource(config.photos, config.seed), lpips, config.vae, config.scale, report)


if __name__ == "__main__":
    main()
