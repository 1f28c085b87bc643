"""GRPO from a real rollout to a loss: fresh ratios, the reference, gradients, windows."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from learner.objectives import build_objective
from learner.objectives.grpo import GRPOBatch, GRPOObjective
from rl.config.run import RunConfig
from rl.data.source import TaskSource
from rl.metrics import Key
from rl.policies import load_policy
from rl.policies.base import Policy
from rl.policies.lora import OLD, POLICY, adapter_parameters, add_adapters, install_snapshot, take_snapshot
from rl.rollout import RolloutWorker
from rl.seeding import member_seeds
from rl.types import TrainGroup

BASE = ("objective={type: grpo}", "rollout.sampler.solver=sde", "data.crop=64", "train.groups_per_step=1")
ADVANTAGES = np.array([-1.2, 0.1, 1.4, -0.3])
VARIANTS = {
    "flow_grpo": (),
    "cps window": (
        "rollout.sampler.sde={step: cps, noise_level: 0.8, window: random, size: 2}",
        "objective.kl_weight=0",
    ),
    "dance": ("rollout.sampler.sde={step: dance, noise_level: 0.3, window: fraction}", "objective.kl_weight=0"),
    "guard": ("objective.guard=true", "objective.weight_by_dt=true", "objective.kl_weight=0"),
    "sliding": ("rollout.sampler.sde={window: sliding, size: 1, every: 1}",),
}


def rolled(config: RunConfig, seed: int = 1) -> tuple[GRPOObjective, Policy, TrainGroup]:
    """A learner's objective and a group that a separate worker sampled with the learner's adapter."""
    policy = load_policy(config.policy)
    policy.backbone.eval()
    add_adapters(policy.backbone, config.policy.lora, (POLICY, OLD))
    theta = adapter_parameters(policy.backbone, POLICY)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theta.values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    snapshot = take_snapshot({name: p.detach().clone() for name, p in theta.items()}, 3)
    install_snapshot(adapter_parameters(policy.backbone, OLD), snapshot)
    worker = RolloutWorker(config)
    worker.install(snapshot)
    task = TaskSource(config.data, config.seed).task(0)
    _, group = worker.rollout(task, member_seeds(config.seed, 0, 4), sampled_with="trajectory")
    objective = build_objective(policy, config)
    assert isinstance(objective, GRPOObjective)
    return objective, policy, TrainGroup(task, group, ADVANTAGES)


def batches(objective: GRPOObjective, group: TrainGroup, version: int = 3) -> list[GRPOBatch]:
    return list(objective.micro_batches([group], version))


@pytest.mark.parametrize("name", VARIANTS)
def test_on_fresh_data_every_ratio_is_exactly_1(run_config: Callable[..., RunConfig], name: str) -> None:
    """The worker's likelihoods, computed again by another policy object and with a gradient: equal to 2e-9, which is a
    ratio of exactly 1 in float32."""
    config = run_config(*BASE, *VARIANTS[name])
    objective, _, group = rolled(config)
    found = batches(objective, group)
    assert len(found) == config.micro_batches_per_group > 0
    for batch in found:
        loss = objective(batch)
        assert batch.fresh and float(loss.terms[Key.RATIO_FRESH]) == 0.0
        assert float(loss.terms[Key.RATIO_DEVIATION]) < 2e-9
        assert float(loss.terms[Key.RATIO_CLIPPED_LOW]) == float(loss.terms[Key.RATIO_CLIPPED_HIGH]) == 0.0


FORCED = (
    "objective={type: grpo, kl_weight: 0}",
    "rollout.sampler.solver=sde",
    "train.groups_per_step=1",
    "data.crop=64",
)


def test_forced_on_a_one_step_policy_every_fresh_ratio_is_exactly_1(naosd_config: Callable[..., RunConfig]) -> None:
    """One transition per member, x' ~ N(x0, 0.1^2): its log-density is -mean(n^2)/2 - log(0.1) - log(2 pi)/2 with the
    member's own n, and the latents that are decoded are x'."""
    config = naosd_config(*FORCED, "rollout.sampler.sde={one_step_std: 0.1}")
    assert config.micro_batches_per_group == 1
    objective, policy, group = rolled(config)
    (batch,) = batches(objective, group)
    loss = objective(batch)
    assert batch.fresh and float(loss.terms[Key.RATIO_FRESH]) == 0.0
    np.testing.assert_array_equal(batch.x_next.numpy(), group.group.latents)
    with torch.no_grad():
        x0 = policy.clean(batch.x, policy.epsilon(batch.x, [batch.condition]))  # type: ignore[union-attr]
    n = ((batch.x_next - x0) / 0.1).double()
    assert 0.8 < float(n.std()) < 1.2
    expected = -n.square().mean((1, 2, 3)) / 2 - np.log(0.1) - np.log(2 * np.pi) / 2
    torch.testing.assert_close(batch.logp_old, expected, rtol=0, atol=2e-4)
    trained = list(adapter_parameters(policy.backbone, POLICY).values())
    assert any(bool(g.abs().max() > 0) for g in torch.autograd.grad(loss.total, trained))


def test_gradient_checkpointing_changes_no_gradient(run_config: Callable[..., RunConfig]) -> None:
    """Backward recomputes the blocks outside of the forward's attention context; the gradient stays the same."""
    gradients = []
    for checkpointing in ("false", "true"):
        objective, policy, group = rolled(run_config(*BASE, f"policy.gradient_checkpointing={checkpointing}"))
        trained = list(adapter_parameters(policy.backbone, POLICY).values())
        gradients.append(torch.autograd.grad(objective(batches(objective, group)[0]).total, trained))
        assert policy.backbone.is_gradient_checkpointing == (checkpointing == "true")
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-6)


def test_stale_groups_and_later_updates_are_not_called_fresh(run_config: Callable[..., RunConfig]) -> None:
    config = run_config(*BASE, "learner.updates_per_batch=3")
    objective, _, group = rolled(config)
    assert [batch.fresh for batch in batches(objective, group)] == [True, False, False]
    assert not any(batch.fresh for batch in batches(objective, group, version=4))
    assert Key.RATIO_FRESH not in objective(batches(objective, group, version=4)[0]).terms


def test_a_moved_policy_has_other_ratios_and_a_kl(run_config: Callable[..., RunConfig]) -> None:
    objective, policy, group = rolled(run_config(*BASE))
    batch = batches(objective, group)[0]
    at_behaviour = objective(batch)
    assert float(at_behaviour.terms[Key.LOSS_KL]) > 0
    with torch.no_grad():
        for parameter in adapter_parameters(policy.backbone, POLICY).values():
            parameter.mul_(1.5)
    moved = objective(batch)
    assert float(moved.terms[Key.RATIO_DEVIATION]) > 1e-4
    assert float(moved.terms[Key.RATIO_CLIPPED_LOW] + moved.terms[Key.RATIO_CLIPPED_HIGH]) > 0


def test_one_step_raises_the_likelihood_of_good_actions(run_config: Callable[..., RunConfig]) -> None:
    objective, policy, group = rolled(run_config(*BASE, "objective.kl_weight=0", "objective.clip=0.5"))
    batch = batches(objective, group)[0]
    trained = list(adapter_parameters(policy.backbone, POLICY).values())
    gradients = torch.autograd.grad(objective(batch).total, trained)
    with torch.no_grad():
        before = objective._step(batch).logp
        norm = torch.nn.utils.get_total_norm(gradients)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter -= 1e-2 * gradient / norm
        moved = objective._step(batch).logp - before
    assert float((torch.from_numpy(ADVANTAGES) * moved).sum()) > 0


def test_the_image_is_the_end_of_the_recorded_path(run_config: Callable[..., RunConfig]) -> None:
    """Window `all` of 4 steps: 3 recorded; x_next of one is x of the next; the last step is Euler's from there."""
    config = run_config(*BASE)
    objective, policy, group = rolled(config)
    taken = group.group.trajectory
    assert taken is not None and taken.steps == (0, 1, 2)
    np.testing.assert_array_equal(taken.x_next[:-1], taken.x[1:])
    batch = batches(objective, group)[-1]
    with torch.no_grad():
        x = batch.x_next
        v = policy.velocity(x, x.new_full((len(x),), batch.s_next), [batch.condition])
        torch.testing.assert_close(torch.from_numpy(group.group.latents), x - batch.s_next * v, rtol=1e-4, atol=1e-4)


def test_a_group_without_a_trajectory_is_refused(run_config: Callable[..., RunConfig]) -> None:
    config = run_config(*BASE)
    objective, _, group = rolled(config)
    worker_group = group.group
    bare = type(worker_group)(**{**worker_group.__dict__, "trajectory": None})
    with pytest.raises(ValueError, match="group 0 carries no trajectory"):
        batches(objective, TrainGroup(group.task, bare, ADVANTAGES))


REFUSED = {
    "an ODE": (("rollout.sampler.solver=dpm2",), "objective 'grpo' needs a stochastic sampler, got .* 'dpm2'"),
    "one step": (("policy={type: naosd}",), "objective 'grpo' needs a multi-step generator, got policy 'naosd'"),
    "a forced flow": (("rollout.sampler.sde={one_step_std: 0.1}",), "one_step_std is for one-step policies, got"),
    "t_add of a flow": (("rollout.vary=t_add",), "'t_add' needs a one-step policy and objective gdpo"),
    "nft with an sde": (("objective={type: nft}",), "solver 'sde' is read only by objective 'grpo'"),
    "guard with cps": (("objective.guard=true", "rollout.sampler.sde={step: cps}"), "needs a step with a density"),
    "a long window": (("rollout.sampler.sde={window: random, size: 3}",), "must train 1 to 2 of 4 steps, got 3"),
    "cps too loud": (("rollout.sampler.sde={step: cps, noise_level: 1.2}",), "at most 1 for step 'cps', got 1.2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_combinations_without_a_likelihood_are_refused(run_config: Callable[..., RunConfig], case: str) -> None:
    overrides, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        run_config(*BASE, *overrides)
