"""Weight-free and without a reference: how sharp and how noisy an image is, in grey levels of 0 to 255.

    sharpness =  sqrt( mean( Gx^2 + Gy^2 ) )                      G = I * Sobel's mask / 8, in grey levels per pixel
    noise     = -sqrt( pi / 2 ) / 6 mean | I * N |                N = (1, -2, 1)^T (1, -2, 1)

The means are over the channels and the pixels whose 3 x 3 neighbours are in the image; a cell of the map has the same
formula with the mean over its pixels. The mean squared Sobel gradient is Tenengrad (J. Tenenbaum 1970; GRA6 in S.
Pertuz, D. Puig, M. Garcia 2013, "Analysis of focus measure operators for shape-from-focus"); with the root and 1/8 a
ramp of one grey level per pixel has sharpness 1. White noise of standard deviation s has noise -s (J. Immerkaer 1996,
"Fast Noise Variance Estimation").

Neither knows the true image: noise raises sharpness, and fine texture counts as noise. Combine them with each other or
with a reward that sees the content. Left out: Immerkaer's exclusion of strong edges.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Layer, LocalScores, RewardError, RewardInput, checked_scores, score_each
from rl.config.reward import RewardSection
from rl.types import F32, F64, U8


class LocalStatistic(ABC):
    """A mean over the pixels of one image, and what is done after it.

    Args:
        section: `name` is read.
    """

    needs_hr = False

    def __init__(self, section: RewardSection) -> None:
        self.name = section.name

    def score(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
        """Scores `[G]` of images `[G, 3, H, W]`; nothing else is read.

        Raises:
            RewardError: a side is below 3 pixels.
        """
        return self._local(images, lr, hr, scale).scores

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The scores of each group, one by one."""
        return score_each(self.score, groups)

    def score_locally(self, groups: Sequence[RewardInput]) -> Sequence[LocalScores]:
        """The same with the values of the pixels as map."""
        return score_each(self._local, groups)

    def _local(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> LocalScores:
        if min(images.shape[2:]) < 3:
            raise RewardError(self.name, f"its mask needs sides of at least 3 pixels, got images {images.shape}")
        values = np.stack([self.values(image.astype(np.int32)) for image in images])
        scores = checked_scores(self.name, self.finish(values.mean(axis=(1, 2), dtype=np.float64)), len(images))
        return LocalScores(scores, (Layer(values, inset=1.0),), self.finish)

    @abstractmethod
    def values(self, image: NDArray[np.int32]) -> F32:
        """`[3, H, W]` in grey levels -> `[H - 2, W - 2]`, mean over the channels."""

    @abstractmethod
    def finish(self, means: F64) -> F64:
        """From the mean over an area to its score, higher is better."""


class Sharpness(LocalStatistic):
    """The root of Tenengrad, in grey levels per pixel."""

    def values(self, image: NDArray[np.int32]) -> F32:
        """Gx^2 + Gy^2."""
        energy = _sobel(image) ** 2 + _sobel(image.swapaxes(1, 2)).swapaxes(1, 2) ** 2
        mean: F32 = energy.mean(axis=0, dtype=np.float32) / 64
        return mean

    def finish(self, means: F64) -> F64:
        score: F64 = np.sqrt(means)
        return score


class Noise(LocalStatistic):
    """Minus Immerkaer's estimate of the standard deviation of noise, in grey levels."""

    def values(self, image: NDArray[np.int32]) -> F32:
        """|I * N|; a second difference convolves with (1, -2, 1)."""
        response = np.abs(np.diff(np.diff(image, n=2, axis=1), n=2, axis=2))
        mean: F32 = response.mean(axis=0, dtype=np.float32)
        return mean

    def finish(self, means: F64) -> F64:
        return -math.sqrt(math.pi / 2) / 6 * means


def _sobel(image: NDArray[np.int32]) -> NDArray[np.int32]:
    """`[..., H, W]` -> `[..., H - 2, W - 2]`: differences (-1, 0, 1) along W, smoothed by (1, 2, 1) along H."""
    across = image[..., 2:] - image[..., :-2]
    smooth: NDArray[np.int32] = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    return smooth
