"""LPIPS (Zhang et al. 2018, v0.1) as a differentiable training loss.

    LPIPS(x, y) = sum_l mean_{h,w} w_l . (f_l(x) - f_l(y))^2      f_l = channel-normalised features after stage l

Rewards and benchmark scores use pyiqa instead (`rewards/iqa/`); this file is the loss term of supervised training,
with weights from two local files and no downloads.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_1, vgg16

NETS = {
    "squeeze": (squeezenet1_1, ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))),
    "vgg": (vgg16, ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))),
}
"""torchvision's network and the stages of its `features` that are compared."""


class Lpips(nn.Module):
    """LPIPS for images `[B, 3, H, W]` in [-1, 1]; returns `[B]`, 0 for equal images, lower is closer.

    Args:
        backbone: state dict of the `features` of torchvision's network.
        heads: the 1x1 heads of LPIPS v0.1, keys `lin{k}.model.1.weight`.
        net: `squeeze` (SqueezeNet 1.1) or `vgg` (VGG-16).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Path, heads: Path, net: str = "squeeze") -> None:
        super().__init__()
        build, stages = NETS[net]
        features = build(weights=None).features
        state = torch.load(backbone, map_location="cpu", weights_only=True)
        features.load_state_dict(
            {key.removeprefix("features."): value for key, value in state.items() if not key.startswith("classifier.")}
        )
        self.stages = nn.ModuleList(features[a:b] for a, b in stages)
        lin = torch.load(heads, map_location="cpu", weights_only=True)
        for k in range(len(stages)):
            self.register_buffer(f"w{k}", lin[f"lin{k}.model.1.weight"].float())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = (torch.cat([x, y]) - self.shift) / self.scale
        total = x.new_zeros(x.shape[0])
        for k, stage in enumerate(self.stages):
            h = stage(h)
            unit = h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)
            diff = (unit[: len(x)] - unit[len(x) :]).square()
            total = total + nn.functional.conv2d(diff, getattr(self, f"w{k}")).mean(dim=(1, 2, 3))
        return total
