"""The blur kernels of Real-ESRGAN's degradation (arXiv 2107.10833, section 3.2 and appendix A): bells and sinc filters.

A kernel is a frozen record of its drawn parameters; `weights` computes it, `[size, size]` float32, summing to one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from rl.config.degradation import DegradationOrder

Weights = NDArray[np.float32]
Shape = Literal["gaussian", "generalized", "plateau"]

KINDS: tuple[tuple[Shape, bool], ...] = (
    ("gaussian", True),
    ("gaussian", False),
    ("generalized", True),
    ("generalized", False),
    ("plateau", True),
    ("plateau", False),
)
"""Shape and whether it is isotropic, in the order of `DegradationOrder.kernel_probabilities`."""


@dataclass(frozen=True)
class Bell:
    """A function of q = v' Sigma^-1 v, Sigma the covariance `sigma`^2 rotated by `theta`, v in pixels from the centre:

    gaussian and generalized exp(-q^beta / 2), plateau 1 / (1 + q^beta); a gaussian's beta is 1.
    """

    shape: Shape
    size: int
    sigma: tuple[float, float]
    theta: float
    beta: float = 1.0

    def weights(self) -> Weights:
        power = self._mahalanobis() ** self.beta
        return _normalised(1.0 / (1.0 + power) if self.shape == "plateau" else np.exp(-0.5 * power))

    def _mahalanobis(self) -> NDArray[np.float64]:
        xx, yy = _grid(self.size)
        u = (xx * math.cos(self.theta) + yy * math.sin(self.theta)) / self.sigma[0]
        v = (-xx * math.sin(self.theta) + yy * math.cos(self.theta)) / self.sigma[1]
        return np.asarray(u**2 + v**2, dtype=np.float64)


@dataclass(frozen=True)
class Sinc:
    """A circular low-pass filter, w J1(w r) / (2 pi r) with cutoff w: the ringing of over-sharpened photographs."""

    size: int
    cutoff: float

    def weights(self) -> Weights:
        r = np.hypot(*_grid(self.size))
        centre = self.size // 2
        r[centre, centre] = 1.0
        kernel = self.cutoff * j1(self.cutoff * r) / (2 * math.pi * r)
        kernel[centre, centre] = self.cutoff**2 / (4 * math.pi)
        return _normalised(kernel)


def draw_kernel(order: DegradationOrder, rng: np.random.Generator) -> Bell | Sinc:
    """A kernel for one pass: with `sinc_probability` a sinc filter, else one of `KINDS`; sides are odd, 7 to 21."""
    if rng.random() < order.sinc_probability:
        return draw_sinc(rng, by_size=True)
    shape, isotropic = KINDS[rng.choice(len(KINDS), p=np.asarray(order.kernel_probabilities))]
    size = _size(rng)
    sigma_x = rng.uniform(*order.blur_sigma)
    sigma_y = sigma_x if isotropic else rng.uniform(*order.blur_sigma)
    theta = 0.0 if isotropic else rng.uniform(-math.pi, math.pi)
    if shape == "gaussian":
        return Bell(shape, size, (sigma_x, sigma_y), theta)
    low, high = order.generalized_beta if shape == "generalized" else order.plateau_beta
    if order.beta_draw == "halves":
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return Bell(shape, size, (sigma_x, sigma_y), theta, rng.uniform(low, high))


def draw_sinc(rng: np.random.Generator, *, by_size: bool) -> Sinc:
    """Cutoff from pi/3 to pi; `by_size`: from pi/5 for kernels of 13 pixels and more."""
    size = _size(rng)
    return Sinc(size, rng.uniform(math.pi / 5 if by_size and size >= 13 else math.pi / 3, math.pi))


def _size(rng: np.random.Generator) -> int:
    return 2 * int(rng.integers(3, 11)) + 1


def _grid(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    axis = np.arange(size) - size // 2
    xx, yy = np.meshgrid(axis, axis)
    return xx, yy


def _normalised(kernel: NDArray[np.float64]) -> Weights:
    summed_to_one: Weights = (kernel / kernel.sum()).astype(np.float32)
    return summed_to_one
