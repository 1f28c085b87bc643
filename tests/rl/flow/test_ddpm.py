"""DDPM's noising, its inverse, and classifier-free guidance."""

import torch
from torch import Tensor

from rl.flow.ddpm import guided, noised, predicted_x0


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_true_noise_gives_the_clean_latent_back() -> None:
    z, eps, abar = randn(0, 3, 4, 5, 5), randn(1, 3, 4, 5, 5), torch.tensor([0.9, 0.5, 0.02], dtype=torch.float64)
    torch.testing.assert_close(predicted_x0(noised(z, eps, abar), eps, abar), z, rtol=1e-10, atol=1e-10)


def test_noise_keeps_the_variance_of_unit_latents() -> None:
    """abar z + (1 - abar) eps in squares: unit variance stays at every level, and abar 1 and 0 are z and eps."""
    z, eps = randn(0, 3, 4, 50, 50), randn(1, 3, 4, 50, 50)
    z_t = noised(z, eps, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert torch.equal(z_t[0], z[0]) and torch.equal(z_t[2], eps[2])
    assert abs(float(z_t[1].var()) - 1) < 4 * (2 / z_t[1].numel()) ** 0.5


def test_guidance_interpolates_and_extrapolates() -> None:
    negative, positive = randn(0, 1, 2, 2, 2), randn(1, 1, 2, 2, 2)
    torch.testing.assert_close(guided(negative, positive, 1.0), positive)
    torch.testing.assert_close(guided(negative, positive, 0.0), negative)
    torch.testing.assert_close(guided(negative, positive, 7.5), negative + 7.5 * (positive - negative))
