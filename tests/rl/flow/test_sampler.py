"""The denoising loop on differential equations whose solutions are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl.flow.sampler import Solver, dpm2_step, euler_step, sample
from rl.flow.schedule import flow_sigmas

START = torch.tensor([[-1.5, -0.3, 0.2, 1.1]], dtype=torch.float64).view(1, 1, 2, 2)
SOLVERS: tuple[Solver, ...] = ("euler", "heun", "dpm2")


def grid(steps: int, first: float = 1.0, last: float = 0.0) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def test_euler_on_a_linear_velocity_is_the_product_of_its_steps() -> None:
    """v = a x: each step multiplies by 1 + a (s' - s)."""
    a, sigmas = 0.8, torch.tensor([1.0, 0.7, 0.25, 0.0], dtype=torch.float64)
    got = sample(lambda x, s: a * x, START, sigmas, "euler")
    torch.testing.assert_close(got, START * (1 - a * 0.3) * (1 - a * 0.45) * (1 - a * 0.25), rtol=1e-14, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_known_image_is_reached_in_any_number_of_steps(solver: Solver, steps: int) -> None:
    """v = (x - x0) / s is the straight path to x0; every solver is exact on it."""
    x0 = torch.tensor([0.3, -0.8, 0.0, 2.0], dtype=torch.float64).view(1, 1, 2, 2)
    got = sample(lambda x, s: (x - x0) / s, START, grid(steps), solver)
    torch.testing.assert_close(got, x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2])
def test_dpm2_equals_euler_where_it_is_first_order(steps: int) -> None:
    """One step, and two steps (the first has no history and the last ends at s' = 0), are Euler's."""
    sigmas = grid(steps)
    got, euler = (sample(curved, START, sigmas, solver) for solver in ("dpm2", "euler"))
    torch.testing.assert_close(got, euler, rtol=0, atol=1e-15)


def test_dpm2_is_first_order_after_pure_noise_and_before_the_image() -> None:
    """Steps with s_prev = 1, without history and to s' = 0 equal Euler's; the one between does not."""
    d, d_prev = 0.7 * START, 0.2 * START
    for args in ((None, 1.0, 1.0, 0.8), (d_prev, 1.0, 0.8, 0.5), (d_prev, 0.5, 0.2, 0.0)):
        previous, s_prev, s, s_next = args
        euler = euler_step(START, (START - d) / s, s, s_next)
        torch.testing.assert_close(dpm2_step(START, d, previous, s_prev, s, s_next), euler, rtol=0, atol=1e-14)
    euler = euler_step(START, (START - d) / 0.5, 0.5, 0.2)
    assert (dpm2_step(START, d, d_prev, 0.8, 0.5, 0.2) - euler).abs().min() > 1e-2


def curved(x: Tensor, s: float) -> Tensor:
    return torch.sin(3 * x) + s * x - 0.5


def test_dpm2_equals_the_solver_of_diffusion_nft() -> None:
    """Golden values of `flow_grpo/diffusers_patch/solver.py` (NVlabs/DiffusionNFT 24af555), solver 'dpm2',
    deterministic, its float32 casts lifted to float64; v = sin(3x) + s x - 1/2 on an uneven grid."""
    sigmas = torch.tensor([1.0, 0.92, 0.8, 0.62, 0.4, 0.18, 0.0], dtype=torch.float64)
    expected = [-0.4115609715825014, 0.13367412125470457, 0.16072562006940927, 0.7034020189821393]
    assert sample(curved, START, sigmas, "dpm2").flatten().tolist() == pytest.approx(expected, abs=1e-12)


def reciprocal(x: Tensor, s: float) -> Tensor:
    """dx/ds = -x^2, solution 1 / (s + c)."""
    return -x.square()


def gaussian(x: Tensor, s: float) -> Tensor:
    """The exact velocity of a rectified flow to images N(0, 1/4): x(s) goes with sqrt((1-s)^2 / 4 + s^2)."""
    return (s - (1 - s) / 4) / ((1 - s) ** 2 / 4 + s**2) * x


def spread(s: float) -> float:
    return math.sqrt((1 - s) ** 2 / 4 + s**2)


def error(velocity: Callable[[Tensor, float], Tensor], solver: Solver, sigmas: Tensor) -> float:
    first, last = float(sigmas[0]), float(sigmas[-1])
    if velocity is reciprocal:
        x, exact = 1 / (first + 0.6), 1 / (last + 0.6)
    else:
        x, exact = spread(first), spread(last)
    start = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
    return abs(sample(velocity, start, sigmas, solver).item() - exact)


@pytest.mark.parametrize(("solver", "ratio"), [("euler", 2.0), ("heun", 4.0), ("dpm2", 4.0)])
@pytest.mark.parametrize("velocity", [reciprocal, gaussian])
def test_order_of_convergence(velocity: Callable[[Tensor, float], Tensor], solver: Solver, ratio: float) -> None:
    """Doubling the steps divides the error by 2 (first order) or 4 (second order); s from 0.8 to 0.3, away from the
    ends where log((1-s)/s) is infinite."""
    coarse, fine = (error(velocity, solver, grid(steps, 0.8, 0.3)) for steps in (80, 160))
    assert coarse / fine == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("velocity", [reciprocal, gaussian])
def test_errors_from_noise_to_image(velocity: Callable[[Tensor, float], Tensor]) -> None:
    """16 times the steps divide Euler's error by about 16 and Heun's by about 256; dpm2's by at least 70, because its
    log-SNR steps are uneven at both ends of the way (order 1.6 to 1.8)."""
    fall = {s: error(velocity, s, grid(20)) / error(velocity, s, grid(320)) for s in SOLVERS}
    assert 13 < fall["euler"] < 17
    assert 200 < fall["heun"] < 300
    assert fall["dpm2"] > 70


def test_model_calls_per_solver() -> None:
    """10 steps cost 10 calls with euler and dpm2, 19 with heun (its last step is Euler's)."""
    calls = {}
    for solver in SOLVERS:
        levels: list[float] = []

        def counted(x: Tensor, s: float, levels: list[float] = levels) -> Tensor:
            levels.append(s)
            return curved(x, s)

        sample(counted, START, flow_sigmas(10, shift=3.0, tokens=64), solver)
        assert min(levels) > 0.0, "no model call at noise level 0"
        calls[solver] = len(levels)
    assert calls == {"euler": 10, "heun": 19, "dpm2": 10}


@pytest.mark.parametrize("solver", SOLVERS)
def test_members_of_a_batch_do_not_meet(solver: Solver) -> None:
    batch = torch.cat([START, 0.5 * START, START.flip(-1)])
    together = sample(curved, batch, grid(6), solver)
    alone = torch.cat([sample(curved, member[None], grid(6), solver) for member in batch])
    assert torch.equal(together, alone)
