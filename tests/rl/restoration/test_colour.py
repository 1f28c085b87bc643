"""Colour alignment: what each form takes from the reference and what it leaves."""

import pytest
import torch
from torch import Tensor

from rl.restoration.colour import COLOUR, LEVELS, adain, low_frequencies, wavelet


def image(seed: int, side: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gain, bias = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([-0.3, 0.1, 0.4])
    noise = torch.rand(3, side, side, generator=generator, dtype=torch.float64)
    return gain[:, None, None] * noise + bias[:, None, None]


def test_adain_gives_the_mean_and_deviation_of_the_reference() -> None:
    x, reference = image(0), image(1).flip(0)
    y = adain(x, reference)
    for moment in (Tensor.mean, Tensor.std):
        torch.testing.assert_close(moment(y, dim=(1, 2)), moment(reference, dim=(1, 2)), rtol=1e-4, atol=1e-6)
    order = x[0].flatten().argsort()
    assert (y[0].flatten()[order].diff() >= 0).all(), "inside a channel the order of pixels stays"


def test_adain_of_a_flat_channel_is_the_reference_mean() -> None:
    """No division by a zero deviation."""
    flat, reference = torch.full((3, 8, 8), 0.2, dtype=torch.float64), image(1, 8)
    expected = reference.mean(dim=(1, 2), keepdim=True).expand(3, 8, 8)
    torch.testing.assert_close(adain(flat, reference), expected, rtol=0, atol=1e-9)


def test_wavelet_with_itself_is_the_identity() -> None:
    x = image(0)
    torch.testing.assert_close(wavelet(x, x), x, rtol=0, atol=1e-14)


def test_wavelet_takes_a_colour_shift_whole() -> None:
    """A reference that is x plus a constant per channel: the result is the reference."""
    x = image(0)
    shifted = x + torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(wavelet(x, shifted), shifted, rtol=0, atol=1e-13)


def test_wavelet_keeps_fine_detail_of_the_image_and_none_of_the_reference() -> None:
    """A checkerboard is all high frequency: kept when it is in x, gone when it is in the reference; inside, away from
    the replicated border."""
    rows, columns = torch.meshgrid(torch.arange(160), torch.arange(160), indexing="ij")
    board = (((rows + columns) % 2) * 0.2 - 0.1).double().expand(3, 160, 160)
    flat = torch.full((3, 160, 160), 0.5, dtype=torch.float64)
    inner = slice(2**LEVELS, -(2**LEVELS))
    kept = wavelet(flat + board, flat)[:, inner, inner]
    torch.testing.assert_close(kept, (flat + board)[:, inner, inner], rtol=0, atol=1e-12)
    gone = wavelet(flat, flat + board)[:, inner, inner]
    torch.testing.assert_close(gone, flat[:, inner, inner], rtol=0, atol=1e-12)


def test_low_frequencies_is_the_a_trous_pyramid() -> None:
    """An impulse after one binomial blur of dilation 1, 2, ..., 16: sum 1, support 2 (1 + 2 + ... + 16) + 1 = 63, and
    the variance per axis of sum 4^i / 2 = 341 / 2."""
    x = torch.zeros(3, 129, 129, dtype=torch.float64)
    x[:, 64, 64] = 1.0
    y = low_frequencies(x)[1]
    profile = y.sum(dim=0)
    axis = torch.arange(129) - 64
    assert y.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert axis[profile > 0].abs().max() == 31
    assert (profile * axis**2).sum().item() == pytest.approx(341 / 2, abs=1e-9)


def test_none_keeps_every_pixel() -> None:
    x = image(0)
    assert torch.equal(COLOUR["none"](x, image(1)), x)
