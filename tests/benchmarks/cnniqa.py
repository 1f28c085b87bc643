"""CNNIQA (Kang et al., CVPR 2014) trained on LIVE, as a no-reference reward file: minus its score, higher is better.

Its weights have no licence, so they stay in shared/ and only benchmarks read them. Grey in 0..1, windows of 32x32, each
normalised by (x - mean) / (std + 1) over 3x3; conv 7x7, largest and smallest response of each filter, three linear
layers; the mean over windows. Left out: the dropout that the published forward keeps on at inference.

    uv run python tests/benchmarks/cnniqa.py IMAGE...       I03.bmp of calibration/iqa_pytorch: ref 12, dist 78
                                                            (the published forward, with its dropout: 14 and 74)
"""

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, linear, pad

from rl.data.photos import load_rgb
from rl.types import F64, U8

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights" / "iqa" / "cnniqa_live.pth"
WINDOW = 32
GREY = (0.299, 0.587, 0.114)


@torch.no_grad()
def score(images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
    """`[G]` of RGB `[G, 3, H, W]`."""
    grey = (torch.tensor(images).float() * torch.tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True) / 255
    windows = _normalised(grey.unfold(2, WINDOW, WINDOW).unfold(3, WINDOW, WINDOW).reshape(-1, 1, WINDOW, WINDOW))
    w = _weights()
    response = conv2d(windows, w["conv1.weight"], w["conv1.bias"]).flatten(2)
    x = torch.cat([response.amax(2), response.amin(2)], dim=1)
    for layer in ("fc1", "fc2"):
        x = linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"]).relu()
    x = linear(x, w["fc3.weight"], w["fc3.bias"])
    return -x.view(len(images), -1).mean(1).double().numpy()


def _normalised(grey: Tensor) -> Tensor:
    padded = pad(grey, (1, 1, 1, 1), mode="replicate")
    mean = avg_pool2d(padded, 3, stride=1)
    square = avg_pool2d(padded.square(), 3, stride=1)
    return (grey - mean) / ((square - mean.square()).abs().sqrt() + 1)


@lru_cache(maxsize=1)
def _weights() -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
    return loaded


if __name__ == "__main__":
    for name in sys.argv[1:]:
        image = np.ascontiguousarray(load_rgb(Path(name)).transpose(2, 0, 1))
        print(f"{-score(image[None], image, None, 1)[0]:.1f}", name)
