"""What every policy answers to the objectives: a noised state, a prediction, a target, the way back to the image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config.policy import policy_section
from rl.config.rollout import GaussianSection, ODESection, OneStepSection, SamplerSection, StochasticSection
from rl.policies import load_policy
from rl.policies.base import LatentCondition, Policy, member_noise

SAMPLERS: dict[str, tuple[SamplerSection, SamplerSection]] = {
    "flux2sr": (ODESection(steps=3), StochasticSection(steps=3)),
    "naosd": (OneStepSection(), GaussianSection(std=0.1)),
}
"""Of images, and with a likelihood."""


@pytest.fixture(params=list(SAMPLERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, tiny_flux2_folder: Path, tiny_sd21_folder: Path) -> Callable[..., Policy]:
    folder = {"flux2sr": tiny_flux2_folder, "naosd": tiny_sd21_folder}[kind]
    return lambda **keys: load_policy(policy_section(type=kind, path=str(folder), **keys))


@pytest.fixture
def policy(make: Callable[..., Policy]) -> Policy:
    return make()


def condition(policy: Policy) -> Any:
    return policy.condition(np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8), 4)


def latents(policy: Policy, members: int, seed: int = 0) -> Tensor:
    return member_noise(range(seed, seed + members), policy.latent_shape(condition(policy)), policy.device).double()


def test_the_true_target_at_a_noised_state_gives_the_image_back(kind: str, make: Callable[..., Policy]) -> None:
    """clean(noised(x0, eps, t), target(x0, eps, t), t) = x0 in float64: a flow at any level, NAOSD, which is called at
    t_diff whatever its state was noised at, where the two are the same."""
    policy = make() if kind == "flux2sr" else make(t_add=100, t_diff=100)
    x0, eps = latents(policy, 4), latents(policy, 4, seed=9)
    levels = [torch.tensor([0.0, 0.1, 0.6, 1.0])] if kind == "flux2sr" else [torch.full((4,), 100.0)]
    for t in levels:
        t = t.double()
        x_t = policy.noised(x0, eps, t)
        if kind == "flux2sr":
            assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[3], eps[3])
        torch.testing.assert_close(policy.clean(x_t, policy.target(x0, eps, t), t), x0, rtol=0, atol=1e-6)


def test_levels_run_to_the_clean_image_and_random_ones_are_the_generators(policy: Policy, kind: str) -> None:
    levels = policy.levels(3, condition(policy))
    assert levels[-1] == 0 and bool((levels.diff() < 0).all())
    one, again, other = (policy.random_levels(2000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    if kind == "naosd":
        assert levels.tolist() == [250.0, 0.0] and set(other.tolist()) == {250.0}
    else:
        assert not torch.equal(one, other) and bool(((one >= 0) & (one < 1)).all())
        assert abs(float(one.mean()) - 0.5) < 4 * (1 / 12 / 2000) ** 0.5


@torch.no_grad()
def test_guidance_is_off_where_a_policy_has_none(policy: Policy) -> None:
    x, known = latents(policy, 2).float(), [condition(policy)]
    t = policy.levels(1, known[0])[:1].expand(2)
    assert torch.equal(policy.guided(x, t, known), policy.prediction(x, t, known))


@torch.no_grad()
def test_members_are_sampled_each_from_its_own_noise(policy: Policy, kind: str) -> None:
    """Four members as one batch are those of two batches of two; another image gives another result."""
    sampler, known = SAMPLERS[kind][0], condition(policy)
    noise = latents(policy, 4).float()
    together = policy.sample(noise, [known], sampler)
    apart = torch.cat([policy.sample(part, [known], sampler) for part in noise.split(2)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    assert len({float(member.abs().mean()) for member in together}) == 4
    other = policy.condition(np.zeros((3, 16, 16), np.uint8), 4)
    assert float((policy.sample(noise, [other], sampler) - together).abs().max()) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("keep_mean", [False, True])
def test_a_transition_repeats_the_trajectorys_step(policy: Policy, kind: str, keep_mean: bool) -> None:
    """Log-probability and mean of every recorded step, bit for bit; a one-step policy's last state is its image."""
    sampler, known = SAMPLERS[kind][1], condition(policy)
    noise = latents(policy, 3).float()
    x0, record = policy.trajectory(noise, known, sampler, (1, 2, 3), (0, 0), keep_mean=keep_mean)
    assert len(record.steps) == sampler.trained_steps == {"flux2sr": 2, "naosd": 1}[kind]
    assert (record.mean is None) == (not keep_mean)
    for slot, k in enumerate(record.steps):
        x, x_next = (torch.from_numpy(state) for state in (record.before(slot), record.after(slot)))
        step = policy.transition(x, x_next, known, sampler, k)
        np.testing.assert_array_equal(step.logp.numpy(), record.logp[slot])
        if record.mean is not None:
            np.testing.assert_array_equal(step.moments.mean.numpy(), record.mean[slot])
    if kind == "naosd":
        np.testing.assert_array_equal(record.after(0), x0.numpy())


def test_a_crop_of_a_condition_is_a_window_of_its_latents(policy: Policy) -> None:
    whole = condition(policy)
    assert isinstance(whole, LatentCondition)
    part = whole.crop(1, 0, 2, 3)
    assert torch.equal(part.latents, whole.latents[:, :, 1:3, 0:3]) and part.text is whole.text
    assert policy.latent_shape(part)[1:] == (2, 3)


@torch.no_grad()
def test_the_probe_of_the_canaries_sees_the_image(policy: Policy) -> None:
    known, other = condition(policy), policy.condition(np.zeros((3, 16, 16), np.uint8), 4)
    noise = latents(policy, 1).float()
    assert torch.equal(policy.probe(known, noise), policy.probe(known, noise))
    difference = policy.probe(known, noise) - policy.probe(other, noise)
    # NAOSD's LR image is in the noised state, which the probe gives it itself
    assert float(difference.abs().max()) > 1e-4 or policy.section.one_step
