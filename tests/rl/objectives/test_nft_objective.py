"""NFT from groups to losses, without DeepSpeed: which micro-batches there are, and what the loss module computes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config.online import RunConfig
from rl.flow.schedule import flow_sigmas, interpolated
from rl.metrics import Key
from rl.objectives.nft import NFTBatch, NFTObjective
from rl.policies.lora import OLD, POLICY, copy_adapter
from rl.types import TrainGroup

Build = Callable[..., NFTObjective]
Configure = Callable[..., RunConfig]
MakeGroup = Callable[..., TrainGroup]
Randomise = Callable[..., None]
WITH_KL = ("objective.kl_weight=0.01", "train.groups_per_step=2")


@pytest.fixture
def objective(build: Build, run_config: Configure) -> NFTObjective:
    return build(run_config(*WITH_KL))


def batches(objective: NFTObjective, groups: list[TrainGroup]) -> list[NFTBatch]:
    return list(objective.micro_batches(groups, 0))


def tensors(batch: NFTBatch) -> tuple[Tensor, ...]:
    return batch.x0, batch.eps, batch.t, batch.r, batch.condition.latents


def settle(objective: NFTObjective) -> None:
    """Let the anchor be the policy."""
    copy_adapter(objective.adapters.parameters(POLICY), objective.adapters.parameters(OLD))


def test_micro_batches_are_timestep_major_and_cover_every_group(objective: NFTObjective, make_group: MakeGroup) -> None:
    """floor(4 * 0.99) = 3 timesteps of 2 groups: a b a b a b; x0, ordinal and version are the group's own."""
    groups = [make_group(3), make_group(8)]
    found = batches(objective, groups)
    assert [(batch.ordinal, batch.policy_version, batch.share) for batch in found] == [(3, 8, 1.0), (8, 13, 1.0)] * 3
    for batch, group in zip(found, groups * 3, strict=True):
        np.testing.assert_array_equal(batch.x0.numpy(), group.group.latents)


def test_each_member_meets_its_timesteps_once(objective: NFTObjective, make_group: MakeGroup) -> None:
    """Levels of the sampler's own grid, no repetition, members independent; fresh noise at every one."""
    found = batches(objective, [make_group(0)])
    levels = torch.stack([batch.t for batch in found], dim=1)
    grid = set(flow_sigmas(4, shift=1.0, tokens=4)[:-1].tolist())
    for row in levels.tolist():
        assert len(set(row)) == 3 and set(row) <= grid
    assert len({tuple(row) for row in levels.tolist()}) > 1
    eps = torch.stack([batch.eps for batch in found])
    assert abs(eps.mean().item()) < 0.15 and abs(eps.std().item() - 1) < 0.1
    assert all(not torch.equal(eps[i], eps[j]) for i in range(3) for j in range(i))


def test_reward_weight_of_the_advantages(objective: NFTObjective, make_group: MakeGroup) -> None:
    """r = 1/2 + A / 10, clipped: -9 -> 0, -1 -> 0.4, 0 -> 0.5, 2 -> 0.7."""
    batch = batches(objective, [make_group(0, (-9.0, -1.0, 0.0, 2.0))])[0]
    assert batch.r.tolist() == pytest.approx([0.0, 0.4, 0.5, 0.7], abs=1e-7)


def test_noise_depends_on_seed_and_ordinal_not_on_the_company(
    build: Build, objective: NFTObjective, make_group: MakeGroup, run_config: Configure
) -> None:
    """A group trained on another rank, or after a resume, gets the same noise and timesteps, bit for bit."""
    alone = batches(objective, [make_group(8)])
    beside = batches(objective, [make_group(3), make_group(8)])[1::2]
    for one, other in zip(alone, beside, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
    reseeded = batches(build(run_config("seed=1", *WITH_KL)), [make_group(8)])
    assert not torch.equal(alone[0].eps, reseeded[0].eps)
    other_group = batches(objective, [make_group(9)])
    assert not torch.equal(alone[0].eps, other_group[0].eps)


def test_the_module_uses_policy_anchor_and_base(
    objective: NFTObjective, make_group: MakeGroup, randomise: Randomise
) -> None:
    """drift = mean (v_policy - v_old)^2, kl = mean (v_policy - v_base)^2, with velocities taken one by one."""
    randomise(objective, POLICY, 1, 0.2)
    randomise(objective, OLD, 2, 0.2)
    batch = batches(objective, [make_group(0)])[0]
    loss = objective(batch)
    x_t = interpolated(batch.x0, batch.eps, batch.t)
    with torch.no_grad():
        v = {}
        for name in (POLICY, OLD, None):
            with objective.adapters.using(name):
                v[name] = objective.policy.prediction(x_t, batch.t, [batch.condition])
    drift, kl = ((v[POLICY] - v[name]).square().mean().item() for name in (OLD, None))
    assert drift > 1e-4 and kl > 1e-4 and abs(drift - kl) > 1e-4
    assert loss.terms[Key.LOSS_DRIFT].item() == pytest.approx(drift, rel=1e-5)
    assert loss.terms[Key.LOSS_KL].item() == pytest.approx(kl, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.terms[Key.LOSS_POLICY].item() + 0.01 * kl, rel=1e-5)


def test_on_the_anchor_there_is_no_drift(objective: NFTObjective, make_group: MakeGroup, randomise: Randomise) -> None:
    """Equal adapters differ by float32 rounding only: attention takes another kernel where no gradient is needed."""
    randomise(objective, POLICY, 1, 0.2)
    settle(objective)
    loss = objective(batches(objective, [make_group(0)])[0])
    assert loss.terms[Key.LOSS_DRIFT].item() < 1e-12
    assert loss.terms[Key.LOSS_KL].item() > 1e-4


def test_only_the_trained_adapter_gets_a_gradient(
    objective: NFTObjective, make_group: MakeGroup, randomise: Randomise
) -> None:
    randomise(objective, POLICY, 1, 0.2)
    randomise(objective, OLD, 2, 0.2)
    objective(batches(objective, [make_group(0)])[0]).total.backward()
    trained = objective.adapters.parameters(POLICY)
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in trained.values())
    with_gradient = {id(p) for p in objective.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in trained.values()}


def test_one_step_moves_good_members_closer_and_bad_ones_away(
    build: Build, run_config: Configure, make_group: MakeGroup, randomise: Randomise
) -> None:
    """After one small gradient step the velocity error of the rewarded members falls and of the others rises."""
    objective = build(run_config("objective.kl_weight=0"))
    randomise(objective, POLICY, 1, 0.2)
    settle(objective)
    trained = objective.adapters.parameters(POLICY)
    for advantages, sign in (((3.0,) * 4, -1), ((-3.0,) * 4, 1)):
        batch = batches(objective, [make_group(0, advantages)])[0]
        before = velocity_error(objective, batch)
        gradients = torch.autograd.grad(objective(batch).total, list(trained.values()))
        with torch.no_grad():
            for parameter, gradient in zip(trained.values(), gradients, strict=True):
                parameter -= 1e-3 * gradient
            assert sign * (velocity_error(objective, batch) - before) > 0
            copy_adapter(objective.adapters.parameters(OLD), trained)


@torch.no_grad()
def velocity_error(objective: NFTObjective, batch: NFTBatch) -> float:
    """mean of the normalised squared x0 error, the quantity that a good member's loss pulls down."""
    x_t = interpolated(batch.x0, batch.eps, batch.t)
    error = objective.policy.prediction(x_t, batch.t, [batch.condition]) - (batch.eps - batch.x0)
    error = batch.t.view(-1, 1, 1, 1) * error
    return (error.square().mean(dim=(1, 2, 3)) / error.abs().mean(dim=(1, 2, 3))).mean().item()


@pytest.mark.parametrize(("kl_weight", "forwards"), [(0.01, 3), (0.0, 2)])
def test_without_kl_the_reference_forward_is_skipped(
    build: Build, run_config: Configure, make_group: MakeGroup, kl_weight: float, forwards: int
) -> None:
    """What the section declares is what is computed."""
    objective = build(run_config(f"objective.kl_weight={kl_weight}"))
    calls: list[int] = []
    objective.policy.modules["transformer"].register_forward_hook(lambda *_: calls.append(1))
    objective(batches(objective, [make_group(0)])[0])
    assert len(calls) == forwards == objective.run_config.objective.forwards()


def test_nft_on_one_step_is_the_loss_of_the_predicted_x0(
    build: Build, naosd_config: Configure, make_group: MakeGroup
) -> None:
    """Forced NFT: velocity x_t - x0_hat at t = 1, so on the behaviour the loss is the normalised x0 error's."""
    objective = build(naosd_config("objective={type: nft, allow_one_step: true, kl_weight: 0, timestep_fraction: 1}"))
    (batch,) = batches(objective, [make_group(0, latents=(4, 4, 4))])
    loss, policy = objective(batch), objective.policy
    with torch.no_grad():
        z_t = policy.noised(batch.x0, batch.eps, batch.t)
        error = policy.clean(z_t, policy.prediction(z_t, batch.t, [batch.condition]), batch.t) - batch.x0
        normalised = error.square().flatten(1).mean(1) / error.abs().flatten(1).mean(1)
    assert loss.terms[Key.LOSS_POLICY].item() == pytest.approx(5 * float(normalised.mean()), rel=1e-4)
