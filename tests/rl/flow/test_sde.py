"""The stochastic steps against numbers of their published code (tests/rl/golden/grpo.json says which and how made), and
the laws that the docstrings state."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from rl.flow.sampler import Velocity, euler_step, sample
from rl.flow.schedule import flow_sigmas
from rl.flow.sde import (
    SDEWindow,
    StepKind,
    cps,
    dance,
    flow_sde,
    log_prob,
    sample_with_trajectory,
    sde_step,
    sde_window,
)
from rl.types import TrajectoryRecord

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "grpo.json").read_text())
KINDS: tuple[StepKind, ...] = ("flow_sde", "cps", "dance")
LEVEL: dict[StepKind, float] = {"flow_sde": 0.7, "cps": 0.8, "dance": 0.3}
"""The published noise levels."""
SHAPE = (4, 3, 5, 6)
SIGMAS = flow_sigmas(10, shift=3.0, tokens=64)


def golden_input(name: str) -> Tensor:
    """amplitude * sin(frequency k): the same tensor under every torch."""
    amplitude, frequency = GOLDEN["inputs"][name]
    k = torch.arange(1, math.prod(GOLDEN["shape"]) + 1, dtype=torch.float64)
    return amplitude * torch.sin(frequency * k).view(GOLDEN["shape"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def window(*steps: int) -> SDEWindow:
    return SDEWindow(steps, steps)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_published_code(kind: StepKind, dtype: torch.dtype, tolerance: float) -> None:
    """Mean, sigma_t, drawn x', two log-probabilities and a gradient in v; s = 1 and s' = 0 are among the steps."""
    golden = GOLDEN["steps"][str(dtype).removeprefix("torch.")][kind]
    levels = torch.tensor(GOLDEN["sigmas"], dtype=dtype).tolist()
    for published in golden["steps"]:
        k = published["step"]
        x, v, noise, other = (golden_input(name)[k].to(dtype) for name in ("x", "v", "noise", "other"))
        at = {"s_max": levels[1], "noise_level": golden["noise_level"]}
        v.requires_grad_()
        drawn = sde_step(kind, x, v, levels[k], levels[k + 1], **at, noise=noise)
        taken = sde_step(kind, x, v, levels[k], levels[k + 1], **at, x_next=other)
        (gradient,) = torch.autograd.grad(taken.logp.sum(), v)
        sigma_t = torch.tensor(drawn.moments.sigma_t, dtype=torch.float64)
        got = {"sigma_t": sigma_t, "mean": drawn.moments.mean, "x_next": drawn.x_next, "logp": drawn.logp}
        for name, value in (got | {"logp_other": taken.logp, "gradient": gradient}).items():
            expected = torch.tensor(published[name], dtype=torch.float64).flatten()
            flat = value.detach().double().flatten()
            torch.testing.assert_close(flat, expected, rtol=tolerance, atol=tolerance, msg=f"{name} of step {k}")


@pytest.mark.parametrize(("s", "s_next"), [(1.0, 0.9), (0.6, 0.4), (0.2, 0.0)])
def test_noise_level_0_is_eulers_step(s: float, s_next: float) -> None:
    """Bit for bit for the SDEs, to rounding for CPS, whose mean is put together from x0^ and eps^."""
    x, v = normal(*SHAPE), normal(*SHAPE, seed=1)
    euler = euler_step(x, v, s, s_next)
    for step in (flow_sde, dance):
        moments = step(x, v, s, s_next, 0.9, 0.0)
        assert moments.std == 0.0 and torch.equal(moments.mean, euler)
    moments = cps(x, v, s, s_next, 0.9, 0.0)
    assert moments.std == 0.0
    torch.testing.assert_close(moments.mean, euler, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["flow_sde", "dance"])
def test_log_prob_is_the_mean_of_a_normal(kind: StepKind) -> None:
    x, v, x_next = (normal(*SHAPE, seed=seed, dtype=torch.float64) for seed in range(3))
    step = sde_step(kind, x, v, 0.8, 0.6, s_max=0.9, noise_level=LEVEL[kind], x_next=x_next)
    expected = Normal(step.moments.mean, step.moments.std).log_prob(x_next).mean(dim=(1, 2, 3))
    torch.testing.assert_close(step.logp, expected, rtol=1e-12, atol=1e-12)


def test_cps_log_ratio_is_2_std2_times_that_of_the_density() -> None:
    x, x_next, *velocities = (normal(*SHAPE, seed=seed, dtype=torch.float64) for seed in range(4))
    steps = [sde_step("cps", x, v, 0.8, 0.6, s_max=0.9, noise_level=0.8, x_next=x_next) for v in velocities]
    densities = [Normal(step.moments.mean, step.moments.std).log_prob(x_next).mean(dim=(1, 2, 3)) for step in steps]
    scale = 2 * steps[0].moments.std ** 2
    torch.testing.assert_close(steps[0].logp - steps[1].logp, scale * (densities[0] - densities[1]))


def test_cps_keeps_the_coefficients_of_image_and_noise() -> None:
    """On x = (1 - s) x0 + s eps with its velocity the mean is (1 - s') x0 + k eps with k^2 + std^2 = s'^2, so that the
    variance of x' is (1 - s')^2 var x0 + s'^2 exactly. Flow-GRPO's SDE has more than s'^2 at the same noise."""
    s, s_next = 0.8, 0.55
    x0, eps = normal(*SHAPE, dtype=torch.float64), normal(*SHAPE, seed=1, dtype=torch.float64)
    x, v = (1 - s) * x0 + s * eps, eps - x0
    for level in (0.0, 0.3, 0.8, 1.0):
        moments = cps(x, v, s, s_next, 0.9, level)
        kept = math.sqrt(s_next**2 - moments.std**2)
        torch.testing.assert_close(moments.mean, (1 - s_next) * x0 + kept * eps, rtol=0, atol=1e-14)
    moments = flow_sde(x, v, s, s_next, 0.9, 0.7)
    kept = (moments.mean - (1 - s_next) * x0) / eps
    assert kept.std() < 1e-12
    assert kept.mean() ** 2 + moments.std**2 > 1.05 * s_next**2


def spread(s: float) -> float:
    """Variance of (1 - s) x0 + s eps with x0 ~ N(0, 1/4)."""
    return (1 - s) ** 2 / 4 + s**2


def gaussian(x: Tensor, s: float) -> Tensor:
    """The exact velocity of the rectified flow to images N(0, 1/4)."""
    return (s - (1 - s) / 4) / spread(s) * x


@pytest.mark.parametrize("kind", ["flow_sde", "dance"])
def test_the_sdes_keep_the_marginals_of_the_ode(kind: StepKind) -> None:
    """200,000 values of N(0, V(0.9)) carried to s = 0.2 in 200 steps: the variances agree within four standard errors,
    1.3 %, and are V(0.2), of which Euler's steps themselves miss 0.6 %. The ODE's end is a multiple of its start, the
    SDE's has forgotten half of it."""
    levels = torch.linspace(0.9, 0.2, 201, dtype=torch.float64).tolist()
    generator = torch.Generator().manual_seed(0)
    start = math.sqrt(spread(0.9)) * torch.randn(1, 1, 400, 500, generator=generator, dtype=torch.float64)
    x = ode = start
    for s, s_next in pairwise(levels):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = sde_step(kind, x, gaussian(x, s), s, s_next, s_max=0.9, noise_level=0.7, noise=noise).x_next
        ode = euler_step(ode, gaussian(ode, s), s, s_next)
    error = 4 * math.sqrt(2 / x.numel())
    assert x.var().item() == pytest.approx(ode.var().item(), rel=error)
    assert x.var().item() == pytest.approx(spread(0.2), rel=error)
    assert torch.corrcoef(torch.stack([start.flatten(), ode.flatten()]))[0, 1] > 0.999
    assert torch.corrcoef(torch.stack([start.flatten(), x.flatten()]))[0, 1] < 0.7


def test_only_the_denominator_takes_s_max_at_pure_noise() -> None:
    """Flow-GRPO's code: sigma_t = a sqrt(1 / (1 - s_max)) at s = 1, not a sqrt(s_max / (1 - s_max))."""
    x = normal(*SHAPE)
    assert flow_sde(x, x, 1.0, 0.92, 0.92, 0.7).sigma_t == pytest.approx(0.7 * math.sqrt(1 / 0.08), rel=1e-12)
    assert flow_sde(x, x, 0.95, 0.9, 0.92, 0.7).sigma_t == pytest.approx(0.7 * math.sqrt(0.95 / 0.05), rel=1e-12)


def test_moments_are_float32_and_log_prob_float64() -> None:
    x, v = normal(*SHAPE).bfloat16(), normal(*SHAPE, seed=1).bfloat16()
    for kind in KINDS:
        step = sde_step(kind, x, v, 0.8, 0.6, s_max=0.9, noise_level=LEVEL[kind], noise=x)
        assert (step.moments.mean.dtype, step.x_next.dtype, step.logp.dtype) == (*[torch.float32] * 2, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_flow_through_a_drawn_sample(kind: StepKind) -> None:
    """A step that draws and a step that evaluates what was drawn have the same gradient, and it is not 0."""
    x, v, noise = (normal(*SHAPE, seed=seed) for seed in range(3))
    v.requires_grad_()
    at = {"s_max": 0.9, "noise_level": LEVEL[kind]}
    drawn = sde_step(kind, x, v, 0.8, 0.6, **at, noise=noise)
    taken = sde_step(kind, x, v, 0.8, 0.6, **at, x_next=drawn.x_next.detach())
    gradients = [torch.autograd.grad(step.logp.sum(), v)[0] for step in (drawn, taken)]
    assert torch.equal(*gradients)
    assert gradients[0].abs().mean() > 1e-4


def network(dtype: torch.dtype = torch.float32) -> Velocity:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1).to(dtype)
    return lambda x, s: torch.tanh(conv(x.to(dtype))) + s


def rollout(kind: StepKind, at: SDEWindow, velocity: Velocity, *, members: int = 4) -> tuple[Tensor, TrajectoryRecord]:
    noises = normal(len(at.stochastic), *SHAPE, seed=1)[:, :members]
    return sample_with_trajectory(
        velocity, normal(*SHAPE)[:members], SIGMAS, at, kind, LEVEL[kind], noises, keep_mean=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_on_the_behaviour_is_exactly_1(kind: StepKind, dtype: torch.dtype) -> None:
    """The same network evaluated again with gradients: every log-probability and mean bit for bit."""
    velocity, levels = network(dtype), SIGMAS.tolist()
    _, trajectory = rollout(kind, window(*range(9)), velocity)
    assert trajectory.mean is not None
    for j, k in enumerate(trajectory.steps):
        x, x_next = (torch.from_numpy(state) for state in (trajectory.before(j), trajectory.after(j)))
        v = velocity(x, levels[k])
        assert v.requires_grad
        at = {"s_max": levels[1], "noise_level": LEVEL[kind]}
        step = sde_step(kind, x, v, levels[k], levels[k + 1], **at, x_next=x_next)
        np.testing.assert_array_equal(step.logp.detach().numpy(), trajectory.logp[j])
        np.testing.assert_array_equal(step.moments.mean.detach().numpy(), trajectory.mean[j])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trajectory_holds_the_states_of_its_window(kind: StepKind) -> None:
    """K = 3 steps in a row are K + 1 = 4 states: Euler's up to the first, x' of one step is x of the next, Euler from
    the last to the image."""
    velocity, levels = network(), SIGMAS.tolist()
    images, trajectory = rollout(kind, window(3, 4, 5), velocity)
    assert trajectory.steps == (3, 4, 5) and trajectory.grid == (3, 4, 5, 6)
    assert trajectory.states.shape == (4, *SHAPE) and trajectory.logp.shape == (3, 4)
    for slot in range(2):
        np.testing.assert_array_equal(trajectory.after(slot), trajectory.before(slot + 1))
    with torch.no_grad():
        first = sample(velocity, normal(*SHAPE), SIGMAS[:4], "euler")
        np.testing.assert_array_equal(trajectory.before(0), first.numpy())
        x = torch.from_numpy(trajectory.after(2))
        for s, s_next in pairwise(levels[6:]):
            last, x = (x, s), euler_step(x, velocity(x, s), s, s_next)
        assert torch.equal(images, x)
        x, s = last
        torch.testing.assert_close(images, x - s * velocity(x, s), rtol=0, atol=1e-6, msg="x0^ of the last step")


def test_untrained_stochastic_steps_are_taken_and_not_kept() -> None:
    """Trained steps 0, 2 and 3 of four begin and end at the states 0, 1, 2, 3, 4; 0 and 2 alone at 0, 1, 2, 3."""
    every, part = SDEWindow((0, 1, 2, 3), (0, 1, 2, 3)), SDEWindow((0, 1, 2, 3), (0, 2))
    velocity = network()
    (images, whole), (same, kept) = rollout("dance", every, velocity), rollout("dance", part, velocity)
    assert torch.equal(images, same) and kept.steps == (0, 2) and kept.grid == (0, 1, 2, 3)
    assert whole.grid == (0, 1, 2, 3, 4)
    np.testing.assert_array_equal(kept.logp, whole.logp[[0, 2]])
    for slot, of_whole in enumerate((0, 2)):
        np.testing.assert_array_equal(kept.before(slot), whole.before(of_whole))
        np.testing.assert_array_equal(kept.after(slot), whole.after(of_whole))


@pytest.mark.parametrize("kind", KINDS)
def test_members_do_not_meet(kind: StepKind) -> None:
    """Two of four members sampled alone are the same members, log-probabilities included."""
    at = window(1, 2, 3)
    images, group = rollout(kind, at, gaussian)
    alone, pair = rollout(kind, at, gaussian, members=2)
    assert torch.equal(alone, images[:2])
    np.testing.assert_array_equal(pair.states, group.states[:, :2])
    np.testing.assert_array_equal(pair.logp, group.logp[:, :2])


def test_what_cannot_be_is_refused() -> None:
    x = normal(*SHAPE)
    at = {"s_max": 0.9, "noise_level": 0.7}
    with pytest.raises(ValueError, match="expected 1 to 5 steps of a run of 10, got 6"):
        sde_window("random", 10, seed=0, iteration=0, size=6)
    with pytest.raises(ValueError, match="expected 1 to 0 steps of a run of 1, got 0"):
        sde_window("all", 1, seed=0, iteration=0)
    with pytest.raises(ValueError, match="second noise level"):
        flow_sde(x, x, 1.0, 0.9, 1.0, 0.7)
    with pytest.raises(ValueError, match=r"noise level in \[0, 1\], got 1.2"):
        cps(x, x, 0.9, 0.8, 0.9, 1.2)
    with pytest.raises(ValueError, match="s_next < s"):
        sde_step("dance", x, x, 0.5, 0.6, **at, noise=x)
    for both in ({}, {"noise": x, "x_next": x}):
        with pytest.raises(ValueError, match="either `noise`"):
            sde_step("dance", x, x, 0.5, 0.4, **at, **both)
    with pytest.raises(ValueError, match="no density"):
        log_prob(x, cps(x, x, 0.2, 0.0, 0.9, 0.8))
    with pytest.raises(ValueError, match="expected 2 noises"):
        sample_with_trajectory(gaussian, x, SIGMAS, window(0, 1), "dance", 0.3, [x], keep_mean=False)
