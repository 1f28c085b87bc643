"""DiffusionNFT's loss against numbers of its published code, and the laws that its docstring states.

The golden values are of NVlabs/DiffusionNFT at 24af555: lines of `scripts/train_nft_sd3.py` from `advantages_clip =` to
`loss +=` run unchanged in float64 on the tensors that `Case` builds. `return_decay` of the same file gives the decays.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.advantages import to_reward_weight
from rl.config.objective import NFTSection
from rl.flow.schedule import flow_sigmas, interpolated
from rl.objectives.nft import (
    NFTLoss,
    implicit_velocities,
    nft_loss,
    normalised_error,
    old_decay,
    trained_timesteps,
)

SHAPE = (4, 3, 4, 5)
PROBES = ((0, 0, 0, 0), (1, 2, 3, 4), (2, 1, 0, 3), (3, 0, 2, 1))


def wave(frequency: float, *shape: int) -> Tensor:
    """sin(frequency k), k = 1, 2, ...: the same tensor under every torch."""
    count = int(np.prod(shape))
    return torch.sin(frequency * torch.arange(1, count + 1, dtype=torch.float64)).view(shape)


@dataclass
class Case:
    """The tensors that the golden values belong to."""

    beta: float = 1.0
    adv_clip_max: float = 5.0
    kl_weight: float = 0.0
    distance: float = 0.15
    """v_theta - v_old is this times a wave; 0 puts the policy on the behaviour."""
    advantages: tuple[float, ...] = (-7.0, -0.4, 0.6, 2.3)

    def __post_init__(self) -> None:
        self.x0, self.eps = wave(0.7, *SHAPE), 1.3 * wave(1.9, *SHAPE)
        self.t = torch.tensor([0.05, 0.35, 0.8, 1.0], dtype=torch.float64)
        self.v_old = self.eps - self.x0 + 0.2 * wave(2.3, *SHAPE)
        self.v_theta = (self.v_old + self.distance * wave(3.1, *SHAPE)).requires_grad_()
        self.v_ref = self.v_old - 0.1 * wave(4.7, *SHAPE)

    def loss(self) -> NFTLoss:
        r = torch.from_numpy(to_reward_weight(np.array(self.advantages), self.adv_clip_max))
        x_t = interpolated(self.x0, self.eps, self.t)
        values = NFTSection(beta=self.beta, adv_clip_max=self.adv_clip_max, kl_weight=self.kl_weight)
        return nft_loss(self.v_theta, self.v_old, self.v_ref, self.x0, x_t, self.t, r, values)

    def gradient(self) -> Tensor:
        self.loss().total.backward()
        assert self.v_theta.grad is not None
        return self.v_theta.grad


@dataclass(frozen=True)
class Golden:
    beta: float
    adv_clip_max: float
    kl_weight: float
    total: float
    gradient_norm: float
    gradient: tuple[float, float, float, float]


GOLDEN = (
    Golden(1.0, 5.0, 1e-4, 0.5727108660477205, 0.3309663992171185,
           (-0.0019621478359637145, 0.015504471301560433, 0.0037712311460189607, -0.01726617928943635)),
    Golden(0.1, 5.0, 0.0, 4.349586224510883, 0.17496602031926223,
           (-0.002432480939947631, 0.0024997155040706364, -0.005277589721166272, 0.024787381843095636)),
    Golden(0.5, 1.0, 0.04, 0.18900121563604672, 0.0844160146108638,
           (-0.00048656353007860966, 0.0024413490712939046, -0.004959907320516909, 0.007565533856142435)),
)  # fmt: skip
KL, DRIFT = 0.015785121456776605, 0.01075745770600692
"""mean (v_theta - v_ref)^2 and mean (v_theta - v_old)^2 of the same run; they depend on no setting."""


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"beta={g.beta}")
def test_loss_and_gradient_equal_the_published_code(golden: Golden) -> None:
    """Two of the four advantages lie outside the clip of 1 and one outside 5; equality to 1e-10."""
    case = Case(golden.beta, golden.adv_clip_max, golden.kl_weight)
    loss, gradient = case.loss(), case.gradient()
    assert loss.total.item() == pytest.approx(golden.total, abs=1e-10)
    assert loss.policy.item() == pytest.approx(golden.total - golden.kl_weight * KL, abs=1e-10)
    assert (loss.kl.item(), loss.drift.item()) == pytest.approx((KL, DRIFT), abs=1e-10)
    assert gradient.norm().item() == pytest.approx(golden.gradient_norm, abs=1e-10)
    assert [gradient[at].item() for at in PROBES] == pytest.approx(golden.gradient, abs=1e-10)


def test_one_pixel_by_hand() -> None:
    """x0 = 1, eps = -1, t = 1/2, so x_t = 0; v_old = -2, v_theta = -1, beta = 1/2, r = 3/4, adv_clip_max = 2.

    v+ = -1.5, v- = -2.5; x0+ = 0.75, x0- = 1.25; both errors are 0.25^2 / 0.25 = 0.25;
    policy = (0.75 * 0.25 + 0.25 * 0.25) * 2 / 0.5 = 1; kl with v_ref = -3 is 4; total = 1 + 0.1 * 4.
    """
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    t, r = torch.tensor([0.5]).double(), torch.tensor([0.75]).double()
    x_t = interpolated(one, -one, t)
    loss = nft_loss(-one, -2 * one, -3 * one, one, x_t, t, r, NFTSection(beta=0.5, adv_clip_max=2.0, kl_weight=0.1))
    assert x_t.item() == 0.0
    assert loss.total.item() == pytest.approx(1.4, abs=1e-12)
    assert (loss.policy.item(), loss.kl.item(), loss.drift.item()) == pytest.approx((1.0, 4.0, 1.0), abs=1e-12)


def test_gradient_on_the_behaviour_is_proportional_to_the_advantage() -> None:
    """At v_theta = v_old one member's gradient is its advantage times that of advantage 1, sign included."""
    unit = Case(distance=0.0, advantages=(1.0,) * 4).gradient()
    advantages = (-3.0, -0.4, 0.6, 4.9)
    mixed = Case(distance=0.0, advantages=advantages).gradient()
    expected = torch.tensor(advantages, dtype=torch.float64).view(-1, 1, 1, 1) * unit
    assert unit.flatten(1).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("beta", [0.1, 3.0])
@pytest.mark.parametrize("adv_clip_max", [5.0, 20.0])
def test_gradient_on_the_behaviour_depends_on_neither_beta_nor_the_clip(beta: float, adv_clip_max: float) -> None:
    """Both cancel to first order as long as no advantage is clipped."""
    advantages = (-3.0, -0.4, 0.6, 4.9)
    expected = Case(1.0, 5.0, distance=0.0, advantages=advantages).gradient()
    got = Case(beta, adv_clip_max, distance=0.0, advantages=advantages).gradient()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_beta_sets_the_curvature_away_from_the_behaviour() -> None:
    """Off v_old the gradients of beta 0.1 and 1 differ; the law above is about one point only."""
    small, large = Case(0.1).gradient(), Case(1.0).gradient()
    assert (small - large).norm() > 0.1 * small.norm()


def test_a_neutral_member_has_no_gradient_on_the_behaviour() -> None:
    """r = 1/2: the positive and the negative term cancel exactly, in every pixel."""
    assert Case(distance=0.0, advantages=(0.0,) * 4).gradient().abs().max() < 1e-15


def test_an_advantage_beyond_the_clip_acts_like_the_clip() -> None:
    clipped = Case(adv_clip_max=1.0, advantages=(-1.0, -0.4, 0.6, 1.0)).gradient()
    torch.testing.assert_close(Case(adv_clip_max=1.0, advantages=(-7.0, -0.4, 0.6, 2.3)).gradient(), clipped)


def test_each_sign_has_its_own_detached_normaliser() -> None:
    """e+ and e- are mean error^2 over that sign's own mean |error|; the gradient is 2 error / (n mean |error|)."""
    case = Case(beta=0.5)
    x_t = interpolated(case.x0, case.eps, case.t)
    means = []
    for v in implicit_velocities(case.v_theta, case.v_old, 0.5):
        v = v.detach().requires_grad_()
        value = normalised_error(v, case.x0, x_t, case.t)
        t = case.t.view(-1, 1, 1, 1)
        error = (x_t - t * v - case.x0).detach()
        mean = error.abs().mean(dim=(1, 2, 3))
        torch.testing.assert_close(value, error.square().mean(dim=(1, 2, 3)) / mean, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(value.sum(), v)
        torch.testing.assert_close(gradient, -2 * t * error / (60 * mean.view(-1, 1, 1, 1)), rtol=1e-12, atol=0)
        means.append(mean)
    assert ((means[0] / means[1]) - 1).abs().min() > 1e-4


def test_the_normaliser_has_a_floor() -> None:
    """A perfect prediction off by 1e-7 everywhere is divided by 1e-5, not by 1e-7: 1e-14 / 1e-5."""
    x0 = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    t = torch.ones(1, dtype=torch.float64)
    assert normalised_error(x0 - 1e-7, x0, x0, t).item() == pytest.approx(1e-9, rel=1e-9)


def test_without_a_reference_the_kl_is_zero_and_its_gradient_absent() -> None:
    case = Case()
    r = torch.from_numpy(to_reward_weight(np.array(case.advantages), 5.0))
    x_t = interpolated(case.x0, case.eps, case.t)
    loss = nft_loss(case.v_theta, case.v_old, None, case.x0, x_t, case.t, r, NFTSection(kl_weight=0.0))
    assert loss.kl.item() == 0.0
    assert loss.total.item() == pytest.approx(Case(kl_weight=0.0).loss().total.item(), abs=1e-14)


def test_kl_pulls_towards_the_reference() -> None:
    """A neutral policy on v_old feels only the KL: gradient = 2 kl_weight (v_theta - v_ref) / n."""
    case = Case(kl_weight=0.04, distance=0.0, advantages=(0.0,) * 4)
    gradient = case.gradient()
    expected = 2 * 0.04 * (case.v_theta - case.v_ref).detach() / case.v_theta.numel()
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("none", {0: 0.0, 1: 0.0, 500: 0.0}),
        ("ramp", {0: 0.0, 1: 0.001, 250: 0.25, 499: 0.499, 500: 0.5, 10_000: 0.5}),
        ("delayed", {0: 0.0, 74: 0.0, 75: 0.0, 76: 0.0075, 175: 0.75, 208: 0.9975, 209: 0.999, 10_000: 0.999}),
    ],
)
def test_old_decay_equals_the_published_return_decay(schedule: str, values: dict[int, float]) -> None:
    """DiffusionNFT's decay types 0, 1 and 2, corners included."""
    for step, decay in values.items():
        assert old_decay(schedule, step) == pytest.approx(decay, abs=1e-15)  # type: ignore[arg-type]


def test_trained_timesteps_are_a_permutation_prefix_of_the_grid() -> None:
    """Per member: no level twice, none off the sampler's grid, never the final 0; and members differ."""
    sigmas = flow_sigmas(10, shift=1.0, tokens=64)
    chosen = trained_timesteps(sigmas, 64, 9, torch.Generator().manual_seed(0))
    grid = set(sigmas[:-1].tolist())
    assert chosen.shape == (64, 9)
    for row in chosen.tolist():
        assert len(set(row)) == 9 and set(row) <= grid
    assert len({tuple(row) for row in chosen.tolist()}) == 64
    first = [row[0] for row in chosen.tolist()]
    assert len(set(first)) >= 9, "the first level must be spread over the grid"


def test_trained_timesteps_depend_on_the_generator_alone() -> None:
    """A shorter draw with the same seed begins the longer one, so `timestep_fraction` only cuts."""
    sigmas = flow_sigmas(8, shift=3.0, tokens=64)
    full = trained_timesteps(sigmas, 1, 8, torch.Generator().manual_seed(4))
    part = trained_timesteps(sigmas, 1, 5, torch.Generator().manual_seed(4))
    assert torch.equal(full[:, :5], part)
    assert torch.equal(full[0].sort(descending=True).values, sigmas[:-1])
