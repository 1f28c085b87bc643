"""Scores, contact sheet and card of a pretrained preset, computed from the files written."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from learner.pretraining.supervised import to_tensor
from rl.config.pretrain import PretrainSection
from rl.data.degradation import degrade, target
from rl.data.photos import load_photos
from rl.objectives.lpips import Lpips
from rl.policies.base import Policy, from_uint8, member_noise, to_uint8
from rl.seeding import derive_seed
from rl.types import U8

CROPS_PER_PHOTO = 6
SAMPLES = 4
_BT601 = (65.481, 128.553, 24.966)


def held_out_crops(config: PretrainSection) -> list[tuple[U8, U8]]:
    """(HR `[H, W, 3]`, LR) pairs of evenly spaced crops from every held-out photograph."""
    found = []
    for name, photo in load_photos(config.held_out).items():
        rows = np.linspace(0, photo.shape[0] - config.crop, 2).astype(int)
        columns = np.linspace(0, photo.shape[1] - config.crop, CROPS_PER_PHOTO // 2).astype(int)
        for y, x in ((int(y), int(x)) for y in rows for x in columns):
            hr = np.ascontiguousarray(photo[y : y + config.crop, x : x + config.crop])
            seed = derive_seed("held-out", name, y, x)
            found.append((target(hr, config.recipe), degrade(hr, scale=config.scale, recipe=config.recipe, seed=seed)))
    return found


def psnr_y(x: Tensor, y: Tensor) -> Tensor:
    """PSNR on the BT.601 luma of images `[B, 3, H, W]` in [-1, 1]; `[B]` in dB."""
    weights = x.new_tensor(_BT601).view(1, 3, 1, 1) / 2
    mse = ((x - y) * weights).sum(1).square().mean((1, 2))
    return 10 * torch.log10(255.0**2 / mse)


@torch.no_grad()
def score(
    policy: Policy, crops: list[tuple[U8, U8]], lpips: Lpips, config: PretrainSection, sheet: Path
) -> dict[str, float]:
    """Single-sample PSNR(Y) and LPIPS-squeeze compared with bicubic, and how much the samples of a crop differ."""
    device = torch.device(config.device)
    hr = to_tensor([pair[0] for pair in crops]).to(device)
    lr = to_tensor([pair[1] for pair in crops]).to(device)
    bicubic = nn.functional.interpolate(lr, scale_factor=config.scale, mode="bicubic").clamp(-1, 1)
    conditions = [policy.condition(np.ascontiguousarray(pair[1].transpose(2, 0, 1)), config.scale) for pair in crops]
    shape = policy.latent_shape(conditions[0])
    samples = []
    for k in range(SAMPLES):
        noise = member_noise([derive_seed("held-out", i, k) for i in range(len(crops))], shape, device)
        samples.append(from_uint8(to_uint8(policy.decode(policy.sample(noise, conditions, config.sampler)))))
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
    image = to_uint8(torch.cat(rows, dim=1)).permute(1, 2, 0).cpu().numpy()
    Image.fromarray(image).save(path)


def card(
    config: PretrainSection, source: str, scores: dict[str, float], minutes: float, policy: Policy, stages: str
) -> str:
    """The preset's README: data, command, seed, time, and scores of the files written."""
    names = {Path(path.removeprefix("skimage:")).stem for group in config.photos for path in group.path}
    held_out = sorted(Path(path.removeprefix("skimage:")).stem for path in config.held_out)
    millions = sum(p.numel() for module in policy.modules.values() for p in module.parameters()) / 1e6
    degradation = config.degradation if isinstance(config.degradation, str) else "the recipe's own"
    sampling = f"{config.sampler.solver} in {config.sampler.steps_taken} step(s)"
    classes = ", ".join(type(module).__name__ for module in policy.modules.values())
    return f"""# {Path(config.out).name}

{type(policy).__name__} at a size that needs no download: {classes} with {millions:.2f} M parameters and a small 8x VAE, fp16.
Not a restoration model for real use.

**Data.** {", ".join(sorted(names))}; crops of {config.crop}, x{config.scale}, degradation `{degradation}`.
Never trained on: {", ".join(held_out)}.

**Training.** {stages}
Seed {config.seed}, {config.threads} threads on {config.device}, {minutes:.0f} minutes, torch {torch.__version__}.

**Command.** `uv run isrl pretrain {source}`

**Scores** of one sample, {sampling}, {scores["crops"]:.0f} crops of the photographs never trained on.

| | PSNR(Y) | LPIPS-squeeze |
|---|---|---|
| bicubic | {scores["bicubic_psnr_y"]:.2f} | {scores["bicubic_lpips_squeeze"]:.3f} |
| sample | {scores["sample_psnr_y"]:.2f} | {scores["sample_lpips_squeeze"]:.3f} |

Standard deviation of PSNR(Y) in a group of {SAMPLES}: {scores["group_std_psnr_y"]:.2f} dB.
"""  # noqa: E501 - the text of a page
