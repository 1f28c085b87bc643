"""Colour alignment of a restored image to its LR input, in two published forms.

    adain     y = (x - mean(x)) / std(x) * std(ref) + mean(ref)         per channel, whole image
    wavelet   y = high(x) + low(ref),  low = five a-trous binomial blurs with dilation 2^i

Both are in use in StableSR, OSEDiff, DP2O-SR and LucidFlux. Images `[3, H, W]` float in any range; `reference` is the
LR image enlarged to the same size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

LEVELS = 5
_EPS = 1e-5


def adain(x: Tensor, reference: Tensor) -> Tensor:
    """Give `x` the channel means and standard deviations of `reference`."""
    dims = (-2, -1)
    std = x.std(dim=dims, keepdim=True) + _EPS
    return (x - x.mean(dim=dims, keepdim=True)) / std * reference.std(dim=dims, keepdim=True) + reference.mean(
        dim=dims, keepdim=True
    )


def low_frequencies(x: Tensor) -> Tensor:
    """`LEVELS` binomial 3x3 blurs with dilation 1, 2, 4, ..., replicated borders."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (taps[:, None] * taps[None, :]).expand(3, 1, 3, 3)
    y = x[None]
    for level in range(LEVELS):
        dilation = 2**level
        padded = nn.functional.pad(y, (dilation,) * 4, mode="replicate")
        y = nn.functional.conv2d(padded, kernel, groups=3, dilation=dilation)
    return y[0]


def wavelet(x: Tensor, reference: Tensor) -> Tensor:
    """Keep the detail of `x`, take the colours of `reference`."""
    return x - low_frequencies(x) + low_frequencies(reference)


def keep(x: Tensor, reference: Tensor) -> Tensor:
    """No alignment."""
    return x


COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": wavelet, "adain": adain, "none": keep}
