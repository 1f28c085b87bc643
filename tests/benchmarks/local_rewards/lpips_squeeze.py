"""LPIPS-squeeze as a reward file with a map: minus the distance of every place, layers enlarged to one grid. Weights:
shared/data/weights/lpips."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from rl.objectives.lpips import Lpips
from rl.policies.base import from_uint8
from rl.types import F64, U8

NEEDS_HR = True
WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "weights" / "lpips"
GRID = 32


@lru_cache
def _network() -> Lpips:
    return Lpips(WEIGHTS / "squeezenet1_1_features.pth", WEIGHTS / "lin_v0.1_squeeze.pth")


@torch.no_grad()
def score(images: U8, lr: U8, hr: U8, scale: int) -> tuple[F64, F64]:
    """`[G]` and `[G, GRID, GRID]`; the score is LPIPS itself, the map's mean differs by what enlarging changes."""
    lpips, x = _network(), from_uint8(torch.tensor(images))
    y = from_uint8(torch.tensor(hr))[None]
    maps = torch.zeros(len(x), 1, GRID, GRID)
    scores = torch.zeros(len(x))
    h: Tensor = (torch.cat([x, y]) - lpips.shift) / lpips.scale
    for k, stage in enumerate(lpips.stages):
        h = stage(h)
        unit = h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)
        distance = conv2d((unit[:-1] - unit[-1:]).square(), getattr(lpips, f"w{k}"))
        scores += distance.mean(dim=(1, 2, 3))
        maps += interpolate(distance, size=(GRID, GRID), mode="bilinear", antialias=True)
    return -scores.double().numpy(), -maps[:, 0].double().numpy()
