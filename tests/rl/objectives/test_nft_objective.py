"""From groups to losses, without DeepSpeed: which micro-batches there are, and what the loss module computes."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from learner.objectives.nft import NFTBatch, NFTObjective
from torch import Tensor

from rl.config.run import RunConfig
from rl.flow.schedule import flow_sigmas
from rl.metrics import Key
from rl.objectives.nft import noised
from rl.policies import load_policy
from rl.policies.base import Policy
from rl.policies.lora import OLD, POLICY, adapter_parameters, add_adapters, copy_adapter, using
from rl.types import RolloutGroup, SRTask, TrainGroup

MEMBERS = 4


@pytest.fixture
def config(run_config: Callable[..., RunConfig]) -> RunConfig:
    return run_config("objective.kl_weight=0.01", "train.groups_per_step=2")


@pytest.fixture
def policy(config: RunConfig) -> Policy:
    policy = load_policy(config.policy)
    policy.backbone.eval()
    add_adapters(policy.backbone, config.policy.lora, (POLICY, OLD))
    for parameter in adapter_parameters(policy.backbone, OLD).values():
        parameter.requires_grad_(False)
    return policy


def micro_batches(groups: list[TrainGroup], policy: Policy, config: RunConfig) -> Iterator[NFTBatch]:
    return NFTObjective(policy, config).micro_batches(groups, 0)


def with_kl(config: RunConfig, kl_weight: float) -> RunConfig:
    objective = config.objective.model_copy(update={"kl_weight": kl_weight})
    return config.model_copy(update={"objective": objective})


@torch.no_grad()
def randomise(policy: Policy, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(policy.backbone, adapter).values():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def make_group(ordinal: int, advantages: tuple[float, ...] = (-9.0, -1.0, 0.0, 2.0)) -> TrainGroup:
    rng = np.random.default_rng(ordinal)
    lr = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    latents = rng.standard_normal((MEMBERS, 16, 2, 2)).astype(np.float32)
    latents.flags.writeable = False
    images = np.zeros((MEMBERS, 3, 32, 32), np.uint8)
    group = RolloutGroup(ordinal, "photo", ordinal + 5, "digest", tuple(range(MEMBERS)), latents, images)
    return TrainGroup(SRTask(ordinal, "photo", lr, None, 4, 0), group, np.array(advantages))


def tensors(batch: NFTBatch) -> tuple[Tensor, ...]:
    return batch.x0, batch.eps, batch.t, batch.r, batch.condition.latents


def test_micro_batches_are_timestep_major_and_cover_every_group(policy: Policy, config: RunConfig) -> None:
    """floor(4 * 0.99) = 3 timesteps of 2 groups: a b a b a b; x0 and version are the group's own."""
    groups = [make_group(3), make_group(8)]
    batches = list(micro_batches(groups, policy, config))
    assert [batch.policy_version for batch in batches] == [8, 13] * 3
    for batch, group in zip(batches, groups * 3, strict=True):
        np.testing.assert_array_equal(batch.x0.numpy(), group.group.latents)


def test_each_member_meets_its_timesteps_once(policy: Policy, config: RunConfig) -> None:
    """Levels of the sampler's own grid, no repetition, members independent; fresh noise at every one."""
    batches = list(micro_batches([make_group(0)], policy, config))
    levels = torch.stack([batch.t for batch in batches], dim=1)
    grid = set(flow_sigmas(4, shift=1.0, tokens=4)[:-1].tolist())
    for row in levels.tolist():
        assert len(set(row)) == 3 and set(row) <= grid
    assert len({tuple(row) for row in levels.tolist()}) > 1
    eps = torch.stack([batch.eps for batch in batches])
    assert abs(eps.mean().item()) < 0.15 and abs(eps.std().item() - 1) < 0.1
    assert all(not torch.equal(eps[i], eps[j]) for i in range(3) for j in range(i))


def test_reward_weight_of_the_advantages(policy: Policy, config: RunConfig) -> None:
    """r = 1/2 + A / 10, clipped: -9 -> 0, -1 -> 0.4, 0 -> 0.5, 2 -> 0.7."""
    batch = next(micro_batches([make_group(0)], policy, config))
    assert batch.r.tolist() == pytest.approx([0.0, 0.4, 0.5, 0.7], abs=1e-7)


def test_noise_depends_on_seed_and_ordinal_not_on_the_company(
    policy: Policy, config: RunConfig, run_config: Callable[..., RunConfig]
) -> None:
    """A group trained on another rank, or after a resume, gets the same noise and timesteps, bit for bit."""
    alone = list(micro_batches([make_group(8)], policy, config))
    beside = list(micro_batches([make_group(3), make_group(8)], policy, config))[1::2]
    for one, other in zip(alone, beside, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
    reseeded = list(micro_batches([make_group(8)], policy, run_config("seed=1", "objective.kl_weight=0.01")))
    assert not torch.equal(alone[0].eps, reseeded[0].eps)
    other_group = list(micro_batches([make_group(9)], policy, config))
    assert not torch.equal(alone[0].eps, other_group[0].eps)


def test_the_module_uses_policy_old_and_base(policy: Policy, config: RunConfig) -> None:
    """drift = mean (v_policy - v_old)^2, kl = mean (v_policy - v_base)^2, with velocities taken one by one."""
    randomise(policy, POLICY, 1)
    randomise(policy, OLD, 2)
    batch = next(micro_batches([make_group(0)], policy, config))
    loss = NFTObjective(policy, config)(batch)
    x_t = noised(batch.x0, batch.eps, batch.t)
    with torch.no_grad():
        v = {}
        for name in (POLICY, OLD, None):
            with using(policy.backbone, name):
                v[name] = policy.velocity(x_t, batch.t, [batch.condition])
    drift, kl = ((v[POLICY] - v[name]).square().mean().item() for name in (OLD, None))
    assert drift > 1e-4 and kl > 1e-4 and abs(drift - kl) > 1e-4
    assert loss.terms[Key.LOSS_DRIFT].item() == pytest.approx(drift, rel=1e-5)
    assert loss.terms[Key.LOSS_KL].item() == pytest.approx(kl, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.terms[Key.LOSS_POLICY].item() + 0.01 * kl, rel=1e-5)


def test_on_the_behaviour_there_is_no_drift(policy: Policy, config: RunConfig) -> None:
    """Equal adapters differ by float32 rounding only: attention takes another kernel where no gradient is needed."""
    randomise(policy, POLICY, 1)
    copy_adapter(adapter_parameters(policy.backbone, POLICY), adapter_parameters(policy.backbone, OLD))
    loss = NFTObjective(policy, config)(next(micro_batches([make_group(0)], policy, config)))
    assert loss.terms[Key.LOSS_DRIFT].item() < 1e-12
    assert loss.terms[Key.LOSS_KL].item() > 1e-4


def test_only_the_trained_adapter_gets_a_gradient(policy: Policy, config: RunConfig) -> None:
    randomise(policy, POLICY, 1)
    randomise(policy, OLD, 2)
    loss = NFTObjective(policy, config)(next(micro_batches([make_group(0)], policy, config)))
    loss.total.backward()
    trained = adapter_parameters(policy.backbone, POLICY)
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in trained.values())
    with_gradient = {id(p) for p in policy.backbone.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in trained.values()}


def test_one_step_moves_good_members_closer_and_bad_ones_away(policy: Policy, config: RunConfig) -> None:
    """After one small gradient step the velocity error of the rewarded members falls and of the others rises."""
    randomise(policy, POLICY, 1)
    copy_adapter(adapter_parameters(policy.backbone, POLICY), adapter_parameters(policy.backbone, OLD))
    objective = NFTObjective(policy, with_kl(config, 0.0))
    for advantages, sign in (((3.0,) * 4, -1), ((-3.0,) * 4, 1)):
        batch = next(micro_batches([make_group(0, advantages)], policy, config))
        trained = adapter_parameters(policy.backbone, POLICY)
        before = velocity_error(policy, batch)
        gradients = torch.autograd.grad(objective(batch).total, list(trained.values()))
        with torch.no_grad():
            for parameter, gradient in zip(trained.values(), gradients, strict=True):
                parameter -= 1e-3 * gradient
            assert sign * (velocity_error(policy, batch) - before) > 0
            copy_adapter(adapter_parameters(policy.backbone, OLD), trained)


@torch.no_grad()
def velocity_error(policy: Policy, batch: NFTBatch) -> float:
    """mean of the normalised squared x0 error, the quantity that a good member's loss pulls down."""
    x_t = noised(batch.x0, batch.eps, batch.t)
    error = policy.velocity(x_t, batch.t, [batch.condition]) - (batch.eps - batch.x0)
    error = batch.t.view(-1, 1, 1, 1) * error
    return (error.square().mean(dim=(1, 2, 3)) / error.abs().mean(dim=(1, 2, 3))).mean().item()


def test_without_kl_the_reference_forward_is_skipped(policy: Policy, config: RunConfig) -> None:
    """3 forwards with a KL, 2 without."""
    calls = []
    policy.backbone.register_forward_hook(lambda *_: calls.append(1))
    batch = next(micro_batches([make_group(0)], policy, config))
    counts = []
    for kl_weight in (0.01, 0.0):
        calls.clear()
        NFTObjective(policy, with_kl(config, kl_weight))(batch)
        counts.append(len(calls))
    assert counts == [3, 2]
