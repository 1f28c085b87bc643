"""Full-reference metrics of pyiqa before their last mean: from one forward pass, the scores and where they come from.

    PSNR     squared error                    -> 10 log10( range^2 / (mean + eps) )
    SSIM     structural similarity            -> mean
    GMSD     gradient magnitude similarity    -> mean; the score itself is minus the standard deviation
    FSIM     1 - (1 - S) w / mean(w), S similarity and w phase congruency    -> mean, which is sum(S w) / sum(w)
    VSI      the same, w visual saliency                                     -> mean
    LPIPS    distance of each feature layer   -> minus the sum of the layers' means
    STLPIPS  the same                         -> the same

The steps are pyiqa's own functions where it has them, so a score is the one that the metric gives; the last steps of
GMSD, FSIM and VSI, which pyiqa keeps inside a function, are written out. Where a metric halves large images, or crops
them, the map covers what the metric saw up to one of its samples. Left out: metrics that are no mean over places
(MS-SSIM's product, DISTS), and patch scores of learned ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from rl.types import F64


@dataclass(frozen=True, eq=False)
class Mapped:
    """Scores and maps of B images, as pyiqa signs them."""

    scores: Tensor
    """`[B]`"""
    layers: tuple[Tensor, ...]
    """`[B, h, w]` each."""
    inset: float
    """Margin in pixels that no layer covers."""
    finish: Callable[[F64], F64]
    """From the mean in a cell to its local score, higher is better."""


def _psnr(net: Any, x: Tensor, y: Tensor) -> Mapped:
    from pyiqa.archs.psnr_arch import psnr
    from pyiqa.utils.color_util import to_y_channel

    crop, options = net.crop_border, net.kwargs
    x, y = _cropped(x, crop), _cropped(y, crop)
    scores = psnr(x, y, net.test_y_channel, **options)
    full, eps = options.get("data_range", 1.0), options.get("eps", 1e-8)
    if net.test_y_channel:
        x, y = (to_y_channel(image, full, options.get("color_space", "yiq")) for image in (x, y))
    squared = (x - y).square().mean(dim=1)
    return Mapped(scores, (squared,), crop, lambda mse: 10 * np.log10(full**2 / (mse + eps)))


def _ssim(net: Any, x: Tensor, y: Tensor) -> Mapped:
    from pyiqa.archs.func_util import preprocess_rgb
    from pyiqa.archs.ssim_arch import ssim

    x, y = (
        preprocess_rgb(_cropped(image, net.crop_border), net.test_y_channel, net.data_range, net.color_space).double()
        for image in (x, y)
    )
    factor = _reduction(x) if net.downsample else 1
    found = ssim(x, y, data_range=net.data_range, downsample=net.downsample, get_ssim_map=True)
    return Mapped(found.mean([1, 2, 3]), (found.mean(dim=1),), net.crop_border + 5 * factor, _mean)


def _gmsd(net: Any, x: Tensor, y: Tensor) -> Mapped:
    """Gradients of 2 x 2 means by Prewitt's masks; similarity (2 a b + T) / (a^2 + b^2 + T), T = 170 on 0..255."""
    from pyiqa.utils.color_util import to_y_channel

    channels = 1 if net.test_y_channel else net.channels
    x, y = (to_y_channel(image, 255) if net.test_y_channel else image * 255.0 for image in (x, y))
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3, device=x.device) / 3
    masks = [mask.expand(channels, 1, 3, 3) for mask in (across, -across.T)]
    average = torch.full((channels, 1, 2, 2), 0.25, device=x.device)

    def magnitude(image: Tensor) -> Tensor:
        half = conv2d(image, average, stride=2, groups=channels)
        dx, dy = (conv2d(half, mask, padding=1, groups=channels) for mask in masks)
        return torch.sqrt(dx**2 + dy**2 + 1e-12)

    a, b = magnitude(x), magnitude(y)
    similarity = (2 * a * b + 170) / (a**2 + b**2 + 170)
    scores = torch.std(similarity.view(len(similarity), -1), dim=1)
    return Mapped(scores, (similarity.mean(dim=1),), 0.0, _mean)


def _fsim(net: Any, x: Tensor, y: Tensor) -> Mapped:
    """S = G P (I Q)^0.03, similarities of gradient, phase congruency and, if `chromatic`, YIQ's colours; w the larger
    phase congruency. From 384 pixels on, of images halved (divided by 3, 4, ...)."""
    from pyiqa.archs.fsim_arch import _phase_congruency, gradient_map, rgb2yiq, similarity_map

    options = dict(net.fsim.keywords)
    chromatic = options.pop("chromatic")
    x, y = (rgb2yiq(avg_pool2d(image * 255, _reduction(image))) for image in (x, y))
    congruency = [_phase_congruency(image[:, :1], **options) for image in (x, y)]
    gradients = [gradient_map(image[:, :1], _scharr()) for image in (x, y)]
    weight = torch.maximum(*congruency)
    weighted = similarity_map(*gradients, 160) * similarity_map(*congruency, 0.85) * weight
    if chromatic:
        i, q = (similarity_map(x[:, k : k + 1], y[:, k : k + 1], 200) for k in (1, 2))
        weighted = weighted * (i * q).abs() ** 0.03
    return _weighted_mean(weighted, weight)


def _vsi(net: Any, x: Tensor, y: Tensor) -> Mapped:
    """S = V G^alpha Re (M N)^beta, similarities of saliency, gradient and LMN's colours; w the larger saliency. From
    384 pixels on, of images halved (divided by 3, 4, ...), their samples beginning half a sample outside the image."""
    from pyiqa.archs.vsi_arch import gradient_map, rgb2lmn, sdsp, similarity_map

    options = net.vsi.keywords
    factor = _reduction(x)
    margin = [factor // 2, (factor - 1) // 2] * 2

    def reduced(image: Tensor) -> Tensor:
        return avg_pool2d(pad(image, margin, mode="replicate"), factor)

    x, y = (image.double() * 255 / net.data_range for image in (x, y))
    saliency = [
        reduced(sdsp(image, **{key: options[key] for key in ("omega_0", "sigma_f", "sigma_d", "sigma_c")}))
        for image in (x, y)
    ]
    x, y = (reduced(rgb2lmn(image)) for image in (x, y))
    gradient = similarity_map(*(gradient_map(image[:, :1], _scharr()) for image in (x, y)), options["c2"])
    m, n = (similarity_map(x[:, k : k + 1], y[:, k : k + 1], options["c3"]) for k in (1, 2))
    colour = (m * n).abs() ** options["beta"] * torch.cos(options["beta"] * (m * n).angle())
    weight = torch.maximum(*saliency)
    weighted = similarity_map(*saliency, options["c1"]) * gradient ** options["alpha"] * colour * weight
    # no place of an image in one colour is salient: eps / eps makes its score 1
    return _weighted_mean(weighted, weight, torch.finfo(weight.dtype).eps)


def _lpips(net: Any, x: Tensor, y: Tensor) -> Mapped:
    """A layer's samples are taken to tile the image evenly, whatever its padding."""
    layers: list[Tensor] = []
    hooks = [lin.register_forward_hook(lambda _, __, output: layers.append(output)) for lin in net.lins]
    try:
        scores = net(x, y)
    finally:
        for hook in hooks:
            hook.remove()
    return Mapped(scores.reshape(len(x)), tuple(layer[:, 0] for layer in layers), 0.0, lambda distance: -distance)


MAPS: Mapping[str, Callable[[Any, Tensor, Tensor], Mapped]] = {
    "PSNR": _psnr,
    "SSIM": _ssim,
    "GMSD": _gmsd,
    "FSIM": _fsim,
    "VSI": _vsi,
    "LPIPS": _lpips,
    "STLPIPS": _lpips,
}
"""pyiqa's class -> its scores and maps of `[B, 3, H, W]` images and references in [0, 1]; the keys are
`rewards.iqa.catalog.MAPPED`."""


def _weighted_mean(weighted: Tensor, weight: Tensor, eps: float = 0.0) -> Mapped:
    """From S w and w `[B, 1, h, w]`: the scores (sum(S w) + eps) / (sum(w) + eps), and the map 1 - (1 - S) w / mean(w).

    S w / mean(w) has the same mean, but grows with w: a defect that draws attention to its place would be rewarded.
    """
    scores = (weighted.sum(dim=(1, 2, 3)) + eps) / (weight.sum(dim=(1, 2, 3)) + eps)
    mean = weight.mean(dim=(1, 2, 3), keepdim=True) + eps / weight[0].numel()
    return Mapped(scores, ((1 - (weight - weighted) / mean)[:, 0],), 0.0, _mean)


def _reduction(image: Tensor) -> int:
    """By how much SSIM, FSIM and VSI reduce an image: to a shorter side of about 256."""
    return max(1, round(min(image.shape[-2:]) / 256))


def _scharr() -> Tensor:
    from pyiqa.archs.func_util import scharr_filter

    across = scharr_filter()
    return torch.stack([across, across.transpose(1, 2)])


def _mean(means: F64) -> F64:
    return means


def _cropped(image: Tensor, border: int) -> Tensor:
    return image[..., border:-border, border:-border] if border else image
