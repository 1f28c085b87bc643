"""What a run is watched by and never trained on: fidelity, perception and looks of samples, and their diversity."""

from pathlib import Path

import numpy as np
import torch
from harness import DATA
from torch.nn.functional import conv2d

from rewards.sections import PyiqaSection, PythonRewardSection
from rewards.server import RewardServer
from rl.objectives.lpips import Lpips
from rl.policies.base import from_uint8
from rl.types import F64, U8, RolloutGroup, SRTask

GREY = np.array([0.299, 0.587, 0.114])
NAMES = ("psnr_y", "ssim_y", "lpips", "cnniqa", "piqe", "brightness", "saturation", "sharpness")
"""Higher is better for psnr_y, ssim_y, cnniqa and piqe (both negated), lower for lpips; the others are looks."""


class Watch:
    """The metrics of `NAMES`; weights lie in shared/."""

    def __init__(self) -> None:
        weights = DATA / "weights" / "lpips"
        self._lpips = Lpips(weights / "squeezenet1_1_features.pth", weights / "lin_v0.1_squeeze.pth")
        cnniqa = PythonRewardSection(name="cnniqa", file=str(Path(__file__).with_name("cnniqa.py")))
        sections = [PyiqaSection(name="psnr_y"), PyiqaSection(name="ssim_y"), cnniqa, PyiqaSection(name="piqe")]
        self._servers = [RewardServer(section) for section in sections]

    @torch.no_grad()
    def scores(self, task: SRTask, group: RolloutGroup) -> F64:
        """`[samples, metrics]` of one crop."""
        psnr, ssim, cnniqa, piqe = (server.score([task], [group])[0].scores for server in self._servers)
        x, hr = from_uint8(torch.from_numpy(group.images)), from_uint8(torch.tensor(task.hr))[None]
        lpips = self._lpips(x, hr.expand_as(x)).double().numpy()
        return np.stack([psnr, ssim, lpips, cnniqa, piqe, *looks(group.images).T], axis=1)


def looks(images: U8) -> F64:
    """`[n, 3]` of `[n, 3, H, W]`: mean grey level, mean of max - min over the channels, mean |Laplacian| of grey; all
    in grey levels of 0 to 255."""
    grey = np.einsum("c,nchw->nhw", GREY, images.astype(np.float64))
    saturation = images.max(axis=1).astype(np.float64) - images.min(axis=1)
    mask = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)[None, None]
    laplacian = conv2d(torch.from_numpy(grey)[:, None], mask).abs().mean(dim=(1, 2, 3)).numpy()
    return np.stack([grey.mean(axis=(1, 2)), saturation.mean(axis=(1, 2)), laplacian], axis=1)


def diversity(images: U8) -> float:
    """Standard deviation over the samples `[n, 3, H, W]` of one crop, mean over pixels and channels, in grey levels."""
    return float(images.astype(np.float64).std(axis=0, ddof=1).mean())
