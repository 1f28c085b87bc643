"""The distillation's gradient: what it stands for, where it vanishes, where it leads."""

import torch
from torch import Tensor

from rl.objectives.vsd import vsd_loss


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gradient_is_the_published_one() -> None:
    """dL/dz = 2 grad / numel with grad = (x0_fake - x0_real) / mean |z - x0_real|, and nothing flows elsewhere."""
    z, fake, real = (randn(seed, 2, 4, 3, 3).requires_grad_() for seed in range(3))
    torch.autograd.backward(vsd_loss(z, fake, real))
    distance = (z - real).detach().abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(z.grad, 2 * ((fake - real) / distance).detach() / z.numel())
    assert fake.grad is None and real.grad is None


def test_equal_scores_give_no_gradient() -> None:
    z, x0 = randn(0, 2, 4, 3, 3).requires_grad_(), randn(1, 2, 4, 3, 3)
    torch.autograd.backward(vsd_loss(z, x0, x0))
    assert z.grad is not None and float(z.grad.abs().max()) == 0.0


def test_a_step_down_the_gradient_moves_towards_the_real_score() -> None:
    """With z between the two predictions, z - lr grad is nearer to x0_real."""
    real, fake = randn(0, 1, 4, 3, 3), randn(1, 1, 4, 3, 3)
    z = (0.5 * (real + fake)).requires_grad_()
    torch.autograd.backward(vsd_loss(z, fake, real))
    assert z.grad is not None
    moved = z.detach() - z.grad
    assert float((moved - real).norm()) < float((z.detach() - real).norm())
