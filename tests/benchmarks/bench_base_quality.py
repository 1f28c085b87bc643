"""An embedded preset against bicubic on Set14 and held-out Kodak crops, degraded x4 by our pipeline.

    uv run python tests/benchmarks/bench_base_quality.py OUT_FOLDER [--type naosd] [--steps 10]

Limits of flux2sr: one sample's PSNR(Y) at most 2.5 dB under bicubic, LPIPS-squeeze at least 15 % better than bicubic.
Writes a contact sheet per set: LR, bicubic, four samples, HR.
"""

import argparse
import json
from pathlib import Path

import torch
from rl.perceptual import Lpips

from learner.pretraining.report import held_out_crops, score
from rl.config.policy import PolicyConfig
from rl.config.pretrain import load_pretrain_config
from rl.policies import load_policy

ROOT = Path(__file__).resolve().parents[2]
SETS = {"kodak": None, "set14": "../shared/data/sr_classics/set14_x4/hr"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=["flux2sr", "naosd"], default="flux2sr")
    parser.add_argument("--policy", default="mini")
    parser.add_argument("--steps", type=int, default=10, help="read only by flux2sr")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    policy = load_policy(PolicyConfig.model_validate({"type": options.type, "path": options.policy}))
    recipe = {"flux2sr": "pretrain_flux2sr_mini.yaml", "naosd": "naosd_pretrain_mini.yaml"}[options.type]
    for name, folder in SETS.items():
        overrides = [f"sampler_steps={options.steps}"] if options.type == "flux2sr" else []
        overrides += [f"held_out=[{folder}]"] if folder else []
        config = load_pretrain_config(ROOT / "configs" / recipe, overrides)
        lpips = Lpips(Path(config.lpips.backbone), Path(config.lpips.heads))
        found = score(policy, held_out_crops(config), lpips, config, options.out / f"{name}.png")
        found["psnr_y_under_bicubic"] = found["bicubic_psnr_y"] - found["sample_psnr_y"]
        found["lpips_better_share"] = 1 - found["sample_lpips_squeeze"] / found["bicubic_lpips_squeeze"]
        print(name, json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
