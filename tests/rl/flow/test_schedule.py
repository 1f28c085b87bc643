"""Noise levels against FLUX.2's pipeline and against their formula."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, retrieve_timesteps

from rl.flow.schedule import flow_sigmas, interpolated

STORED = {
    (10, 64): (1.9039257109536, 0.9837159372288512, 0.8703351938058544, 0.4271964424593226),
    (28, 1024): (1.8591765771805644, 0.9942627040051754, 0.8652009425434732, 0.19206305480059516),
    (50, 4800): (1.26916266, 0.9942966561065313, 0.7805993754170699, 0.06769437230653347),
}
"""(steps, tokens) -> mu and the levels 1, steps / 2 and steps - 1: 128 px, 512 px, and above the 4300 tokens where
FLUX.2 drops the dependence on steps. Worked out in float64 from e^mu u / (1 + (e^mu - 1) u)."""

FLUX2_DEV_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
"""scheduler/scheduler_config.json of FLUX.2-dev."""


@pytest.mark.parametrize(("steps", "tokens"), STORED)
def test_flux2_shift_equals_the_pipelines_own_calls(steps: int, tokens: int) -> None:
    """The levels that Flux2Pipeline.__call__ makes with FLUX.2-dev's scheduler file, bit for bit."""
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX2_DEV_SCHEDULER)
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert torch.equal(flow_sigmas(steps, shift="flux2", tokens=tokens), scheduler.sigmas)


@pytest.mark.parametrize(("steps", "tokens"), STORED)
def test_flux2_shift_has_the_stored_values(steps: int, tokens: int) -> None:
    mu, *levels = STORED[steps, tokens]
    assert compute_empirical_mu(tokens, steps) == pytest.approx(mu, abs=1e-12)
    sigmas = flow_sigmas(steps, shift="flux2", tokens=tokens)
    assert [float(sigmas[k]) for k in (1, steps // 2, steps - 1)] == pytest.approx(levels, abs=2e-7)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_number_is_the_shift_itself(shift: float, steps: int) -> None:
    """s = shift u / (1 + (shift - 1) u), u = 1, (steps-1)/steps, ..., 1/steps, then 0; shift 1 is the plain grid."""
    sigmas = flow_sigmas(steps, shift=shift, tokens=64)
    u = np.arange(steps, 0, -1) / steps
    expected = [*(shift * u / (1 + (shift - 1) * u)), 0.0]
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, "flux2"])
def test_levels_fall_from_noise_to_image(shift: float) -> None:
    for steps in (1, 2, 10, 50):
        sigmas = flow_sigmas(steps, shift=shift, tokens=256)
        assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
        assert sigmas[0] == 1.0 and sigmas[-1] == 0.0
        assert (sigmas.diff() < 0).all()


def test_a_plain_shift_ignores_the_size_and_flux2_does_not() -> None:
    """More tokens, more noise: FLUX.2's mu grows with the token count, so every inner level rises."""
    assert torch.equal(flow_sigmas(10, shift=2.0, tokens=64), flow_sigmas(10, shift=2.0, tokens=4096))
    small, large = (flow_sigmas(10, shift="flux2", tokens=tokens) for tokens in (64, 4096))
    assert (large[1:-1] > small[1:-1]).all()
    assert math.exp(compute_empirical_mu(64, 10)) == pytest.approx(6.7122, abs=1e-4)


def test_interpolation_runs_from_the_image_to_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x_t = interpolated(x0, eps, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[2], eps[2])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * eps[1])
