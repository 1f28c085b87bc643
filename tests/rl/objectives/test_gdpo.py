"""The losses of GDPO and Diffusion-DPO against numbers of their published code, and the laws that their docstrings
state.

The golden values are of Joyies/GDPO at e93d643: the lines of `GDPOSR/train/train_GDPOSR.py` from `model_losses =` to
`loss = gdpo_loss` run unchanged in float64 on the tensors that `Case` builds.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.objectives.diffusion_dpo import dpo_loss
from rl.objectives.gdpo import gdpo_loss
from rl.objectives.preference import preference_loss, sample_error

OMEGA = 5000.0


def wave(frequency: float, *shape: int) -> Tensor:
    """sin(frequency k), k = 1, 2, ...: the same tensor under every torch."""
    count = int(np.prod(shape))
    return torch.sin(frequency * torch.arange(1, count + 1, dtype=torch.float64)).view(shape)


@dataclass
class Case:
    """N groups of G members; `distance` is how far the policy's prediction is from the reference's."""

    groups: int
    members: int
    distance: float

    def __post_init__(self) -> None:
        shape = (self.groups * self.members, 4, 4, 5)
        self.eps = wave(1.9, *shape)
        self.reference = self.eps + 0.3 * wave(2.3, *shape)
        self.prediction = (self.reference + self.distance * wave(3.1, *shape)).requires_grad_()
        r = wave(5.3, self.groups, self.members)
        self.advantages = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8)

    def errors(self) -> tuple[Tensor, Tensor]:
        e_theta = sample_error(self.prediction, self.eps).view(self.groups, self.members)
        return e_theta, sample_error(self.reference, self.eps).view(self.groups, self.members)

    def gdpo(self) -> tuple[Tensor, Tensor]:
        """Mean loss over the groups, and `inside` `[N]`."""
        losses = [gdpo_loss(*group, OMEGA) for group in zip(*self.errors(), self.advantages, strict=True)]
        values, insides = zip(*losses, strict=True)
        return torch.stack(values).mean(), torch.stack(insides)


GOLDEN = {
    "start": (
        (1, 6, 0.0), 0.6931471805599453, [0.0],
        [-7.465982041486749, -11.074383865523082, 3.8322732419804404],
    ),
    "six": (
        (1, 6, 0.02), 0.6521311379989203, [0.08378662148051524],
        [-7.179981811030724, -10.924915947271092, 3.5180135422750665],
    ),
    "two groups": (
        (2, 4, 0.05), 1.089661865031111, [1.3626888887211321, -1.7981780360923176],
        [-0.9986743054800548, -1.671339778973112, 6.87451682760427],
    ),
    "pair": (
        (1, 2, 0.03), 0.6399371647693587, [0.10941124520148088],
        [4.699270159302199, -6.544621158315307, -5.687262640983105],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_loss_and_gradient_equal_the_published_code(name: str) -> None:
    size, loss, inside, gradient = GOLDEN[name]
    case = Case(*size)
    total, got = case.gdpo()
    torch.autograd.backward(total)
    assert float(total.detach()) == pytest.approx(loss, rel=1e-10)
    assert got.tolist() == pytest.approx(inside, rel=1e-10, abs=1e-12)
    g = case.prediction.grad
    assert g is not None
    assert [float(g[0, 0, 0, 0]), float(g[1, 2, 3, 4]), float(g[-1, 3, 1, 2])] == pytest.approx(gradient, rel=1e-10)


def test_at_the_reference_the_loss_is_ln_2() -> None:
    assert Case(3, 6, 0.0).gdpo()[0].item() == pytest.approx(math.log(2), abs=1e-12)


def test_two_members_are_diffusion_dpo_at_omega_over_sqrt_2() -> None:
    case = Case(1, 2, 0.05)
    total, inside = case.gdpo()
    d = (case.errors()[0] - case.errors()[1])[0]
    winner, loser = (int(case.advantages[0].argmax()), int(case.advantages[0].argmin()))
    other, dpo_inside = dpo_loss(d[winner], d[loser], OMEGA / math.sqrt(2))
    assert total.item() == pytest.approx(other.item(), rel=1e-6)
    assert inside.item() == pytest.approx(dpo_inside.item(), rel=1e-6)


DPO_GOLDEN = {
    "one pair": (1, 0.02, 0.6438773127251264, [0.10109362887247494], [6.662590344712362, -8.040569389636527]),
    "three pairs": (
        3, 0.04, 0.6689077087205569, [-0.6633790677423868, -0.019276628874676655, 1.376919737379051],
        [3.0989927639666326, -1.0607649797104675],
    ),
}  # fmt: skip
"""Of SalesforceAIResearch/DiffusionDPO at 5233e75: `train.py` from `model_losses =` to `loss = -1 *` in float64, beta
5000; winners first, then losers, one noise per pair."""


@pytest.mark.parametrize("name", DPO_GOLDEN)
def test_diffusion_dpo_equals_its_published_code(name: str) -> None:
    pairs, distance, loss, inside, gradient = DPO_GOLDEN[name]
    shape = (2 * pairs, 4, 4, 5)
    eps = wave(1.9, pairs, *shape[1:]).repeat(2, 1, 1, 1)
    reference = eps + 0.3 * wave(2.3, *shape)
    prediction = (reference + distance * wave(3.1, *shape)).requires_grad_()
    d = (sample_error(prediction, eps) - sample_error(reference, eps)).view(2, pairs).T
    values, got = map(torch.stack, zip(*(dpo_loss(*pair, 5000.0) for pair in d), strict=True))
    total = values.mean()
    torch.autograd.backward(total)
    assert float(total.detach()) == pytest.approx(loss, rel=1e-10)
    assert got.tolist() == pytest.approx(inside, rel=1e-10)
    g = prediction.grad
    assert g is not None and [float(g[0, 0, 0, 0]), float(g[-1, 3, 1, 2])] == pytest.approx(gradient, rel=1e-10)


def test_one_pair_by_hand() -> None:
    """inside = -beta/2 (d_w - d_l) = -50 (-0.15 - 0.15) = 15; dL/dd_w = beta/2 sigmoid(-15), dL/dd_l its negative."""
    d = torch.tensor([-0.15, 0.15], dtype=torch.float64, requires_grad=True)
    total, inside = dpo_loss(d[0], d[1], 100.0)
    torch.autograd.backward(total)
    assert inside.item() == pytest.approx(15.0, rel=1e-12)
    slope = 50 / (1 + math.exp(15))
    assert d.grad is not None and d.grad.tolist() == pytest.approx([slope, -slope], rel=1e-10)


def test_a_group_without_a_preference_has_no_gradient() -> None:
    """All advantages 0, what tied rewards become: ln 2 and a gradient of exactly 0, not NaN."""
    case = Case(1, 6, 0.05)
    e_theta, e_ref = case.errors()
    total, _ = gdpo_loss(e_theta[0], e_ref[0], torch.zeros(6, dtype=torch.float64), OMEGA)
    torch.autograd.backward(total)
    assert total.item() == pytest.approx(math.log(2), abs=1e-12)
    assert case.prediction.grad is not None and float(case.prediction.grad.abs().max()) == 0.0


def test_the_gradient_is_proportional_to_the_advantage_at_the_reference() -> None:
    """dL/de_i = omega/4 A_i at policy = reference: sigma(0) = 1/2 times omega/2."""
    e_ref = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    e_theta = e_ref.clone().requires_grad_()
    advantages = wave(5.3, 6)
    torch.autograd.backward(gdpo_loss(e_theta, e_ref, advantages, OMEGA)[0])
    torch.testing.assert_close(e_theta.grad, OMEGA / 4 * advantages)


def test_the_gradient_in_an_error_is_what_the_second_pass_weighs_it_with() -> None:
    """dL/dd_i = sigmoid(-inside) c_i, the surrogate's weight where a group is trained in micro-batches."""
    d, c = (0.01 * wave(2.3, 5)).requires_grad_(), 100 * wave(5.3, 5)
    loss, inside = preference_loss(d, c)
    torch.autograd.backward(loss)
    assert abs(inside.item()) > 0.1
    torch.testing.assert_close(d.grad, (torch.sigmoid(-inside) * c).detach(), rtol=1e-12, atol=0)
