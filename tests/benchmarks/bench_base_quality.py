"""An embedded preset against bicubic on Set14 and held-out Kodak crops, degraded x4 by our pipeline.

    uv run python tests/benchmarks/bench_base_quality.py OUT_FOLDER [--type naosd] [--steps 10] [--smoke]

Limits of flux2sr: one sample's PSNR(Y) at most 2.5 dB under bicubic, LPIPS-squeeze at least 15 % better than bicubic.
Writes a contact sheet per set: LR, bicubic, four samples, HR.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import ROOT

from learner.pretraining.report import held_out_crops, score
from rl.config.load import load_pretrain_config
from rl.config.policy import policy_section
from rl.objectives.lpips import Lpips
from rl.policies import load_policy

SETS = {"kodak": None, "set14": "../shared/data/sr_classics/set14_x4/hr"}
RECIPES = {"flux2sr": "pretrain_flux2sr_mini.yaml", "naosd": "naosd_pretrain_mini.yaml"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=list(RECIPES), default="flux2sr")
    parser.add_argument("--policy", default="mini")
    parser.add_argument("--steps", type=int, default=10, help="read only by flux2sr")
    parser.add_argument("--smoke", action="store_true", help="one photograph, two steps")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    policy = load_policy(policy_section(type=options.type, path=options.policy))
    steps = 2 if options.smoke else options.steps
    for name, folder in ({"smoke": "skimage:coffee"} if options.smoke else SETS).items():
        overrides = [] if policy.section.one_step else [f"sampler_steps={steps}"]
        overrides += [f"held_out=[{folder}]"] if folder else []
        config = load_pretrain_config(ROOT / "configs" / RECIPES[options.type], overrides)
        lpips = Lpips(Path(config.lpips.backbone), Path(config.lpips.heads))
        found = score(policy, held_out_crops(config), lpips, config, options.out / f"{name}.png")
        found["psnr_y_under_bicubic"] = found["bicubic_psnr_y"] - found["sample_psnr_y"]
        found["lpips_better_share"] = 1 - found["sample_lpips_squeeze"] / found["bicubic_lpips_squeeze"]
        print(name, json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
