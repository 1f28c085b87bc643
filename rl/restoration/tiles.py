"""Restores an image of any size with a policy, by tiles that share one noise field.

    v(x) = sum_tiles w_k v_k(x) / sum_tiles w_k         at every denoising step, w_k a Gaussian over tile k

Blending predictions (velocities, or the one noise prediction of a one-step policy) instead of finished pixels keeps
neighbouring tiles on one trajectory, so there are no seams. The image is padded by reflection to the backbone's size
multiple and cropped afterwards.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rl.config.rollout import SamplerSection
from rl.policies.base import Condition, Policy, from_uint8, member_noise, to_uint8
from rl.restoration.colour import COLOUR
from rl.types import U8

TILE_BATCH = 8


@torch.no_grad()
def restore_image(
    policy: Policy,
    lr: U8,
    *,
    scale: int,
    seed: int,
    sampler: SamplerSection,
    prompt: str = "",
    tile_px: int = 128,
    overlap_px: int = 48,
    colour: str = "wavelet",
) -> U8:
    """Super-resolve LR `[3, h, w]` uint8 to `[3, scale h, scale w]` uint8; `tile_px` and `overlap_px` in output
    pixels, rounded to whole tokens. The tile should have the size that the policy was trained at."""
    if colour not in COLOUR:
        raise ValueError(f"colour: expected one of {sorted(COLOUR)}, got '{colour}'")
    multiple = policy.section.size_multiple
    condition = policy.condition(_pad(lr, multiple // math.gcd(multiple, scale)), scale, prompt)
    noise = member_noise([seed], policy.latent_shape(condition), policy.device)
    view = tiled_policy(policy, tile=tile_px // multiple, overlap=overlap_px // multiple)
    latents = view.sample(noise, [condition], sampler)
    pixels = policy.decode(latents)[0].float()
    height, width = lr.shape[1] * scale, lr.shape[2] * scale
    pixels = pixels[:, :height, :width].clamp(-1, 1)
    reference = from_uint8(torch.from_numpy(np.array(lr))[None]).to(policy.device)
    reference = nn.functional.interpolate(reference, size=(height, width), mode="bicubic").clamp(-1, 1)[0]
    return to_uint8(COLOUR[colour](pixels, reference)).cpu().numpy()


def tiled_policy(policy: Policy, *, tile: int, overlap: int) -> Policy:
    """The policy, with predictions for one whole image `[1, C, h, w]` made on tiles and with a tile's noise schedule;
    `tile` and `overlap` in tokens."""
    view = copy.copy(policy)

    def guided(x_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        def predict(tiles: Tensor, parts: Sequence[Condition]) -> Tensor:
            return policy.guided(tiles, t.expand(len(tiles)), parts)

        return tiled(predict, x_t, conditions[0], tile=tile, overlap=overlap)

    def levels(steps: int, condition: Condition) -> Tensor:
        return policy.levels(steps, condition.crop(0, 0, tile, tile))

    view.guided, view.levels = guided, levels  # type: ignore[method-assign]  # of this copy alone
    return view


def tiled(
    predict: Callable[[Tensor, Sequence[Condition]], Tensor],
    x: Tensor,
    condition: Condition,
    *,
    tile: int,
    overlap: int,
) -> Tensor:
    """One prediction over the latent grid `[1, C, h, w]` from predictions on tiles; `tile` and `overlap` in tokens."""
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles: expected 0 <= overlap < tile, got overlap {overlap} and tile {tile} tokens")
    rows, columns = x.shape[2:]
    height, width = min(tile, rows), min(tile, columns)
    corners = [(top, left) for top in _starts(rows, height, overlap) for left in _starts(columns, width, overlap)]
    weight = _gaussian(height)[:, None] * _gaussian(width)[None, :]
    total, norm = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for batch in _batches(range(len(corners))):
        cut = [corners[i] for i in batch]
        tiles = torch.cat([x[:, :, top : top + height, left : left + width] for top, left in cut])
        parts = [condition.crop(top, left, height, width) for top, left in cut]
        for (top, left), value in zip(cut, predict(tiles, parts).float(), strict=True):
            total[0, :, top : top + height, left : left + width] += weight.to(value) * value
            norm[0, :, top : top + height, left : left + width] += weight.to(value)
    return total / norm


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First cells of tiles that cover `length`, the last one flush with the border."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _gaussian(length: int) -> Tensor:
    """Tile weights along one side, with a standard deviation of 0.3 of the side (OSEDiff: variance 0.01 of it)."""
    axis = (torch.arange(length) + 0.5) / length - 0.5
    return torch.exp(-0.5 * (axis / 0.3) ** 2)


def _batches(indices: range) -> Iterator[range]:
    for start in range(0, len(indices), TILE_BATCH):
        yield indices[start : start + TILE_BATCH]


def _pad(lr: U8, multiple: int) -> U8:
    height, width = lr.shape[1:]
    bottom, right = -height % multiple, -width % multiple
    mode: Literal["reflect", "edge"] = "reflect" if min(height, width) > multiple else "edge"
    return np.pad(lr, ((0, 0), (0, bottom), (0, right)), mode)
