"""Blur kernels: normalised, of the shape that their name says, and drawn from the published ranges."""

import math

import numpy as np
import pytest

from rl.config.degradation import DegradationOrder
from rl.data.blur_kernels import KINDS, Bell, draw_kernel, draw_sinc


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=str)
def test_every_blur_kernel_sums_to_one(kind: int) -> None:
    """Sides odd and 7 to 21; not negative; centred; isotropic kinds symmetric under transposition, others seldom."""
    shares = tuple(float(k == kind) for k in range(len(KINDS)))
    order = DegradationOrder(kernel_probabilities=shares, sinc_probability=0.0)
    rng = np.random.default_rng(0)
    symmetric = []
    for _ in range(40):
        kernel = draw_kernel(order, rng).weights()
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] in range(7, 22, 2)
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
        assert kernel.min() >= 0 and kernel.max() == kernel[kernel.shape[0] // 2, kernel.shape[0] // 2]
        symmetric.append(np.allclose(kernel, kernel.T, atol=1e-6))
    assert all(symmetric) if KINDS[kind][1] else sum(symmetric) < 10


def test_sinc_kernel_sums_to_one_and_rings() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        kernel = draw_sinc(rng, by_size=True).weights()
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(kernel, kernel.T, atol=1e-6)
        assert kernel.min() < 0


@pytest.mark.parametrize(("by_size", "lowest"), [(False, math.pi / 3), (True, math.pi / 5)])
def test_lowest_cutoff(by_size: bool, lowest: float) -> None:
    """The last sinc filter's is pi/3 at every size; a pass's own is pi/5 from 13 pixels on."""
    rng = np.random.default_rng(0)
    drawn = [draw_sinc(rng, by_size=by_size) for _ in range(2000)]
    large = [sinc.cutoff for sinc in drawn if sinc.size >= 13]
    small = [sinc.cutoff for sinc in drawn if sinc.size < 13]
    assert lowest < min(large) < 1.02 * lowest and max(large) < math.pi
    assert math.pi / 3 < min(small) < 1.02 * math.pi / 3


@pytest.mark.parametrize(("draw", "below"), [("halves", 0.5), ("uniform", 0.5 / 3.5)])
def test_generalised_beta_is_below_one_half_of_the_time(draw: str, below: float) -> None:
    order = DegradationOrder(kernel_probabilities=(0, 0, 1, 0, 0, 0), sinc_probability=0.0, beta_draw=draw)
    rng = np.random.default_rng(0)
    kernels = [draw_kernel(order, rng) for _ in range(2000)]
    betas = [kernel.beta for kernel in kernels if isinstance(kernel, Bell)]
    assert np.mean(np.array(betas) < 1) == pytest.approx(below, abs=0.03)
    assert min(betas) >= 0.5 and max(betas) <= 4


def test_gaussian_kernel_has_its_width() -> None:
    """sigma 1.5 pixels: the second moment of the kernel is 1.5^2, up to the window."""
    for size in range(13, 22, 2):
        kernel = Bell("gaussian", size, (1.5, 1.5), 0.0).weights()
        axis = np.arange(size) - size // 2
        assert (kernel.sum(axis=0) * axis**2).sum() == pytest.approx(1.5**2, rel=0.01)
