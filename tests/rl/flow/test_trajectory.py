"""Trajectories of whole runs: the records of micro-batches joined, a recorded step computed again, own noise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.config.rollout import StochasticSection
from rl.flow.sampler import sample
from rl.flow.schedule import flow_sigmas
from rl.flow.trajectory import flow_trajectory, flow_transition, gaussian_trajectory, join_trajectories, one_step
from rl.types import TrajectoryRecord

SIGMAS = flow_sigmas(6, shift=3.0, tokens=64)
SEEDS = (11, 12, 13, 14)
SHAPE = (4, 3, 5, 6)


def velocity(x: Tensor, s: float) -> Tensor:
    torch.manual_seed(0)
    return torch.tanh(nn.functional.conv2d(x, 0.3 * torch.randn(3, 3, 3, 3), padding=1)) + s


def section(**sde: object) -> StochasticSection:
    return StochasticSection.model_validate({"steps": 6, "sde": sde})


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def taken(sampler: StochasticSection, part: slice = slice(0, 4), iteration: int = 0) -> tuple[Tensor, TrajectoryRecord]:
    return flow_trajectory(
        velocity, noise()[part], SIGMAS, sampler, SEEDS[part], (7, iteration), keep_mean=sampler.sde.step != "cps"
    )


@pytest.mark.parametrize("step", ["flow_sde", "cps", "dance"])
@pytest.mark.parametrize("window", ["all", "random", "sliding", "fraction"])
def test_a_recorded_step_computed_again_has_its_likelihood(step: str, window: str) -> None:
    """`before`, `after` and the step's index are all that training needs: log-probability and mean bit for bit."""
    sampler = section(step=step, window=window, **({"size": 2} if window in ("random", "sliding") else {}))
    _, record = taken(sampler)
    assert len(record.steps) == sampler.trained_steps
    for slot, k in enumerate(record.steps):
        x, x_next = (torch.from_numpy(state) for state in (record.before(slot), record.after(slot)))
        again = flow_transition(velocity, x, x_next, SIGMAS, sampler.sde, k)
        np.testing.assert_array_equal(again.logp.numpy(), record.logp[slot])
        if record.mean is not None:
            np.testing.assert_array_equal(again.moments.mean.numpy(), record.mean[slot])


@pytest.mark.parametrize("window", ["all", "random", "sliding"])
def test_steps_in_a_row_store_one_state_more_than_there_are_steps(window: str) -> None:
    sampler = section(window=window, **({"size": 2} if window != "all" else {}))
    _, record = taken(sampler)
    assert len(record.states) == len(record.grid) == len(record.steps) + 1
    for slot in range(len(record.steps) - 1):
        assert np.shares_memory(record.before(slot + 1), record.after(slot))
        np.testing.assert_array_equal(record.before(slot + 1), record.after(slot))
    assert all(later == earlier + 1 for earlier, later in pairwise(record.grid))


def test_gaps_between_trained_steps_store_both_ends() -> None:
    """`fraction` 0.6 of 5 trains 3 of the steps 0 to 4; each state that one of them begins or ends at is there once."""
    records = [taken(section(window="fraction", fraction=0.6), iteration=i)[1] for i in range(8)]
    assert len({record.steps for record in records}) > 1
    for record in records:
        assert record.grid == tuple(sorted({k for step in record.steps for k in (step, step + 1)}))
        assert len(record.states) == len(record.grid)


def test_micro_batches_joined_are_the_whole_group() -> None:
    """Members 0 to 2 and member 3 sampled apart: noise of start and steps is each member's own."""
    images, whole = taken(section())
    parts = [taken(section(), part) for part in (slice(0, 3), slice(3, 4))]
    joined = join_trajectories([record for _, record in parts])
    torch.testing.assert_close(torch.cat([x for x, _ in parts]), images, rtol=0, atol=1e-5)
    assert (joined.steps, joined.grid) == (whole.steps, whole.grid)
    np.testing.assert_allclose(joined.states, whole.states, rtol=0, atol=1e-5)
    np.testing.assert_allclose(joined.logp, whole.logp, rtol=0, atol=1e-5)
    assert joined.mean is not None and whole.mean is not None
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=0, atol=1e-5)
    bare = [taken(section(step="cps"), part)[1] for part in (slice(0, 3), slice(3, 4))]
    assert join_trajectories(bare).mean is None


def test_outside_the_window_steps_are_eulers() -> None:
    """`sliding` at place 1 of size 1: the state before it is Euler's, whatever the members' seeds are."""
    sampler = section(window="sliding", size=1, every=1)
    _, record = taken(sampler, iteration=1)
    assert record.steps == (1,)
    np.testing.assert_array_equal(record.before(0), sample(velocity, noise(), SIGMAS[:2], "euler").numpy())


def test_one_step_draws_from_a_gaussian_around_its_image() -> None:
    """x' = x0 + std n with each member's own n; evaluated again x' has the recorded likelihood."""
    z_t, std = noise(), 0.1
    image = 0.5 * z_t
    x0, record = gaussian_trajectory(lambda: image, z_t, std, SEEDS, keep_mean=True)
    n = (x0 - image) / std
    assert 0.9 < float(n.std()) < 1.1 and not torch.equal(n[0], n[1])
    assert (record.steps, record.grid) == ((0,), (0, 1))
    np.testing.assert_array_equal(record.before(0), z_t.numpy())
    np.testing.assert_array_equal(record.after(0), x0.numpy())
    again = one_step(lambda: image, std, x_next=torch.from_numpy(record.after(0)))
    np.testing.assert_array_equal(again.logp.numpy(), record.logp[0])
    alone, _ = gaussian_trajectory(lambda: image[2:3], z_t[2:3], std, SEEDS[2:3], keep_mean=False)
    assert torch.equal(alone[0], x0[2])
