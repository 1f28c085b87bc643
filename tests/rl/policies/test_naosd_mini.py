"""The embedded one-step preset: small, better looking than bicubic, and its t_add trades fidelity for detail."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.pretraining.report import held_out_crops, psnr_y
from rl.config.load import load_pretrain_config
from rl.config.policy import policy_section
from rl.config.rollout import OneStepSection
from rl.objectives.lpips import Lpips
from rl.policies import load_policy
from rl.policies.base import Policy, from_uint8, member_noise
from rl.types import U8


@pytest.fixture(scope="module")
def crops(shared_data: Path) -> list[tuple[Tensor, U8]]:
    """HR `[1, 3, 128, 128]` in [-1, 1] and LR `[3, 32, 32]` of nine Kodak crops that the preset was not trained on."""
    photos = [str(shared_data / "hr_photos" / "kodak" / f"kodim{i:02d}.png") for i in (3, 6, 10, 17, 20, 24)]
    recipe = Path(__file__).parents[3] / "configs" / "naosd_pretrain_mini.yaml"
    pairs = held_out_crops(load_pretrain_config(recipe, [f"held_out=[{', '.join(photos)}]"]))[::4]
    return [
        (from_uint8(torch.from_numpy(hr.transpose(2, 0, 1).copy()))[None], np.ascontiguousarray(lr.transpose(2, 0, 1)))
        for hr, lr in pairs
    ]


@cache
def preset(t_add: int) -> Policy:
    return load_policy(policy_section(type="naosd", t_add=t_add))


def restored(t_add: int, lr: U8, samples: int = 4) -> Tensor:
    policy = preset(t_add)
    with torch.no_grad():
        condition = policy.condition(lr, 4)
        noise = member_noise(range(samples), policy.latent_shape(condition), torch.device("cpu"))
        return policy.decode(policy.sample(noise, [condition], OneStepSection())).clamp(-1, 1)


def test_its_files_are_under_8_mb_and_half_precision() -> None:
    folder = policy_section(type="naosd").folder()
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert not list(folder.rglob("text_encoder")) and (folder / "README.md").is_file()


def test_it_looks_better_than_bicubic(crops: list[tuple[Tensor, U8]], shared_data: Path) -> None:
    """LPIPS-squeeze at least 15 % better on average, PSNR(Y) at most 3 dB under (2.4 dB on all 36, RESULTS 10)."""
    weights = shared_data / "weights" / "lpips"
    lpips = Lpips(weights / "squeezenet1_1_features.pth", weights / "lin_v0.1_squeeze.pth")
    scores = []
    for hr, lr in crops:
        bicubic = torch.nn.functional.interpolate(
            from_uint8(torch.from_numpy(lr.copy()))[None], scale_factor=4, mode="bicubic"
        ).clamp(-1, 1)
        y = restored(250, lr, samples=1)
        with torch.no_grad():
            scores.append([float(f(image, hr).mean()) for image in (bicubic, y) for f in (lpips, psnr_y)])
    lpips_bicubic, psnr_bicubic, lpips_y, psnr_y_mean = np.mean(scores, axis=0)
    assert lpips_y < 0.85 * lpips_bicubic
    assert psnr_y_mean > psnr_bicubic - 3.0


def test_t_add_trades_fidelity_for_difference(crops: list[tuple[Tensor, U8]]) -> None:
    """150, 250, 350 with the same noise: PSNR falls, members differ more and more (GDPO-SR, Table 10, figure 7)."""
    fidelity, difference = [], []
    for t_add in (150, 250, 350):
        groups = [(restored(t_add, lr), hr) for hr, lr in crops]
        fidelity.append(np.mean([float(psnr_y(y, hr.expand_as(y)).mean()) for y, hr in groups]))
        difference.append(np.mean([float(y.std(0).mean()) for y, _ in groups]))
    assert fidelity[0] > fidelity[1] > fidelity[2]
    assert difference[0] < difference[1] < difference[2]
    assert difference[1] > 0.01
