"""GRPO from a real rollout to a loss: fresh ratios, the reference, gradients, windows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.config.online import RunConfig
from rl.data.source import TaskSource
from rl.flow.cells import Cells
from rl.metrics import Key
from rl.objectives.grpo import GRPOBatch, GRPOObjective
from rl.policies.lora import POLICY, take_snapshot
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds
from rl.types import TrainGroup

Configure = Callable[..., RunConfig]
Roll = Callable[..., tuple[GRPOObjective, TrainGroup]]

BASE = ("objective={type: grpo}", "rollout.sampler.solver=sde", "data.crop=64", "train.groups_per_step=1")
ADVANTAGES = np.array([-1.2, 0.1, 1.4, -0.3])
VARIANTS = {
    "flow_grpo": (),
    "cps window": (
        "rollout.sampler.sde={step: cps, noise_level: 0.8, window: random, size: 2}",
        "objective.kl_weight=0",
    ),
    "dance": (
        "rollout.sampler.sde={step: dance, noise_level: 0.3, window: fraction, noise: group}",
        "objective.kl_weight=0",
    ),
    "guard": ("objective.guard=true", "objective.weight_by_dt=true", "objective.kl_weight=0"),
    "sliding": ("rollout.sampler.sde={window: sliding, size: 1, every: 1}",),
    "every layer": ("policy.lora.targets=attn_add_single",),
    "micro-batches": ("rollout.micro_batch=3",),
    "samples": ("rollout.micro_batch=1", "objective.order=samples"),
    "cells": ("advantage.spatial=map",),
    "cells of three, guard": ("advantage={spatial: map, pool: 3}", "objective.guard=true", "objective.kl_weight=0"),
}
GAUSSIAN = ("objective={type: grpo, kl_weight: 0}", "rollout.sampler={solver: gaussian, std: 0.1}", "data.crop=64")


@pytest.fixture
def rolled(build: Callable[..., GRPOObjective], randomise: Callable[..., None]) -> Roll:
    """A learner's objective and a group that a separate worker sampled with the learner's random adapter, version 3."""

    def make(config: RunConfig, ordinal: int = 0) -> tuple[GRPOObjective, TrainGroup]:
        objective = build(config)
        randomise(objective, POLICY, 1, 0.05)
        theta = objective.adapters.parameters(POLICY)
        worker = RolloutWorker(config)
        worker.install(take_snapshot({name: p.detach().clone() for name, p in theta.items()}, 3))
        task = TaskSource(config.data, config.seed).task(ordinal)
        _, group = worker.rollout(task, member_seeds(config.seed, ordinal, 4))
        grid = Cells.of(config.advantage).grid(torch.from_numpy(group.latents))
        return objective, TrainGroup(task, group, ADVANTAGES.reshape(4, *(1,) * len(grid)) * np.ones(grid))

    return make


def batches(objective: GRPOObjective, group: TrainGroup, version: int = 3) -> list[GRPOBatch]:
    return list(objective.micro_batches([group], version))


def trained(objective: GRPOObjective) -> list[torch.nn.Parameter]:
    return list(objective.adapters.parameters(POLICY).values())


def assert_fresh(objective: GRPOObjective, group: TrainGroup) -> None:
    found = batches(objective, group)
    assert len(found) == objective.run_config.micro_batches_per_group > 0
    for batch in found:
        loss = objective(batch)
        assert batch.fresh and loss.total.requires_grad
        assert float(loss.maxima[Key.RATIO_FRESH]) == float(loss.maxima[Key.RATIO_DEVIATION]) == 0.0
        assert float(loss.terms[Key.RATIO_CLIPPED_LOW]) == float(loss.terms[Key.RATIO_CLIPPED_HIGH]) == 0.0


@pytest.mark.parametrize("name", VARIANTS)
def test_on_fresh_data_every_ratio_is_exactly_1(run_config: Configure, rolled: Roll, name: str) -> None:
    """The worker's likelihoods, computed again by another policy object and with a gradient: equal in float64."""
    assert_fresh(*rolled(run_config(*BASE, *VARIANTS[name])))


@pytest.mark.parametrize("targets", ["attn_add", "attn_add_single"])
def test_on_the_preset_too(run_config: Configure, rolled: Roll, mini_folder: Path, targets: str) -> None:
    """Sizes at which torch has other ways to multiply than for the tiny model."""
    assert_fresh(*rolled(run_config(*BASE, f"policy.lora.targets={targets}", path=mini_folder)))


def test_on_a_one_step_policy_every_fresh_ratio_is_exactly_1(naosd_config: Configure, rolled: Roll) -> None:
    """One transition per member, x' ~ N(x0, 0.1^2): its log-density is -mean(n^2)/2 - log(0.1) - log(2 pi)/2 with the
    member's own n, and the latents that are decoded are x'."""
    config = naosd_config(*GAUSSIAN, "train.groups_per_step=1")
    assert config.micro_batches_per_group == 1
    objective, group = rolled(config)
    assert_fresh(objective, group)
    (batch,) = batches(objective, group)
    np.testing.assert_array_equal(batch.x_next.numpy(), group.group.latents)
    policy, t = objective.policy, torch.full((4,), 250.0)
    with torch.no_grad():
        x0 = policy.clean(batch.x, policy.prediction(batch.x, t, [batch.condition]), t)
    n = ((batch.x_next - x0) / 0.1).double()
    assert 0.8 < float(n.std()) < 1.2
    expected = -n.square().mean((1, 2, 3)) / 2 - np.log(0.1) - np.log(2 * np.pi) / 2
    torch.testing.assert_close(batch.logp_old, expected, rtol=0, atol=2e-4)
    gradients = torch.autograd.grad(objective(batch).total, trained(objective))
    assert any(bool(g.abs().max() > 0) for g in gradients)


def test_gradient_checkpointing_changes_no_gradient(run_config: Configure, rolled: Roll) -> None:
    """Backward recomputes the blocks outside of the forward's attention context; the gradient stays the same."""
    gradients = []
    for checkpointing in ("false", "true"):
        objective, group = rolled(run_config(*BASE, f"policy.gradient_checkpointing={checkpointing}"))
        loss = objective(batches(objective, group)[0])
        gradients.append(torch.autograd.grad(loss.total, trained(objective)))
        assert objective.policy.modules["transformer"].is_gradient_checkpointing == (checkpointing == "true")
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-6)


def test_stale_groups_and_later_updates_are_not_called_fresh(run_config: Configure, rolled: Roll) -> None:
    objective, group = rolled(run_config(*BASE, "learner.updates_per_batch=3"))
    assert [batch.fresh for batch in batches(objective, group)] == [True, False, False]
    assert not any(batch.fresh for batch in batches(objective, group, version=4))
    assert Key.RATIO_FRESH not in objective(batches(objective, group, version=4)[0]).maxima


def test_a_moved_policy_has_other_ratios_and_a_kl(run_config: Configure, rolled: Roll) -> None:
    objective, group = rolled(run_config(*BASE))
    batch = batches(objective, group)[0]
    assert float(objective(batch).terms[Key.LOSS_KL]) > 0
    with torch.no_grad():
        for parameter in trained(objective):
            parameter.mul_(1.5)
    moved = objective(batch)
    assert float(moved.maxima[Key.RATIO_DEVIATION]) > 1e-4
    assert float(moved.terms[Key.RATIO_CLIPPED_LOW] + moved.terms[Key.RATIO_CLIPPED_HIGH]) > 0


def test_one_step_raises_the_likelihood_of_good_actions(run_config: Configure, rolled: Roll) -> None:
    objective, group = rolled(run_config(*BASE, "objective.kl_weight=0", "objective.clip=0.5"))
    batch = batches(objective, group)[0]
    gradients = torch.autograd.grad(objective(batch).total, trained(objective))
    with torch.no_grad():
        before = objective._step(batch).logp
        norm = torch.nn.utils.get_total_norm(gradients)
        for parameter, gradient in zip(trained(objective), gradients, strict=True):
            parameter -= 1e-2 * gradient / norm
        moved = objective._step(batch).logp - before
    assert float((torch.from_numpy(ADVANTAGES) * moved).sum()) > 0


def test_the_image_is_the_end_of_the_recorded_path(run_config: Configure, rolled: Roll) -> None:
    """Window `all` of 4 steps: 3 recorded, on 4 states; the last step is Euler's from there."""
    objective, group = rolled(run_config(*BASE))
    taken = group.group.trajectory
    assert taken is not None and taken.steps == (0, 1, 2) and taken.states.shape[:2] == (4, 4)
    np.testing.assert_array_equal(taken.after(0), taken.before(1))
    batch = batches(objective, group)[-1]
    with torch.no_grad():
        x, s = batch.x_next, float(objective.policy.levels(4, batch.condition)[3])
        v = objective.policy.prediction(x, x.new_full((len(x),), s), [batch.condition])
        torch.testing.assert_close(torch.from_numpy(group.group.latents), x - s * v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("noise", "starts"), [("member", 4), ("group", 1)])
def test_noise_of_the_group_starts_all_members_at_one_point(
    run_config: Configure, rolled: Roll, noise: str, starts: int
) -> None:
    """DanceGRPO's members differ by their stochastic steps alone; micro-batches of members change nothing."""
    for parts in ("rollout.micro_batch=0", "rollout.micro_batch=3"):
        _, group = rolled(run_config(*BASE, f"rollout.sampler.sde.noise={noise}", parts))
        taken = group.group.trajectory
        assert taken is not None
        assert len({state.tobytes() for state in taken.before(0)}) == starts
        assert len({state.tobytes() for state in taken.after(0)}) == 4
        assert len({image.tobytes() for image in group.group.images}) == 4


def test_a_group_without_a_trajectory_is_refused(run_config: Configure, rolled: Roll) -> None:
    objective, group = rolled(run_config(*BASE))
    bare = replace(group, group=replace(group.group, trajectory=None))
    with pytest.raises(ValueError, match="group 0 carries no trajectory"):
        batches(objective, bare)


REFUSED = {
    "an ODE": (("rollout.sampler.solver=dpm2",), "objective 'grpo' needs a stochastic sampler, got .* 'dpm2'"),
    "one step": (
        ("policy={type: naosd}", "rollout.sampler={solver: one_step}"),
        "objective 'grpo' needs a multi-step generator, got policy 'naosd'",
    ),
    "a forced flow": (("rollout.sampler={solver: gaussian, std: 0.1}",), "solver must be one of .* got 'gaussian'"),
    "nft with an sde": (("objective={type: nft}",), "solver 'sde' is read only by objectives that need a likelihood"),
    "guard with cps": (("objective.guard=true", "rollout.sampler.sde={step: cps}"), "needs a step with a density"),
    "a long window": (("rollout.sampler.sde={window: random, size: 3}",), "must train 1 to 2 of 4 steps, got 3"),
    "cps too loud": (("rollout.sampler.sde={step: cps, noise_level: 1.2}",), "at most 1 for step 'cps', got 1.2"),
    "other micro-batches": (("learner.micro_batch=2",), r"must equal rollout.micro_batch \(4 members\) .* got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_combinations_without_a_likelihood_are_refused(run_config: Configure, case: str) -> None:
    overrides, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        run_config(*BASE, *overrides)
