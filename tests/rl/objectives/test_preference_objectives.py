"""GDPO and Diffusion-DPO on the learner: what a micro-batch holds, what the reference is, where gradients go."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from learner.objectives import build_objective
from learner.objectives.preference import PreferenceBatch, PreferenceObjective

from rl.config.run import RunConfig
from rl.metrics import Key
from rl.objectives.gdpo import sample_error
from rl.policies import load_policy
from rl.policies.lora import OLD, POLICY, adapter_parameters, add_adapters, using
from rl.policies.naosd.policy import NAOSD
from rl.types import RolloutGroup, SRTask, TrainGroup

MEMBERS = 4


@pytest.fixture
def config(naosd_config: Callable[..., RunConfig]) -> RunConfig:
    return naosd_config()


@pytest.fixture
def policy(config: RunConfig) -> NAOSD:
    policy = load_policy(config.policy)
    assert isinstance(policy, NAOSD)
    policy.backbone.eval()
    add_adapters(policy.backbone, config.policy.lora, (POLICY, OLD))
    return policy


@torch.no_grad()
def randomise(policy: NAOSD, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(policy.backbone, POLICY).values():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def make_group(ordinal: int, advantages: tuple[float, ...] = (-1.2, 0.1, 1.4, -0.3)) -> TrainGroup:
    rng = np.random.default_rng(ordinal)
    lr = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    images = rng.integers(0, 256, (MEMBERS, 3, 32, 32), dtype=np.uint8)
    latents = np.zeros((MEMBERS, 4, 4, 4), np.float32)
    group = RolloutGroup(ordinal, "photo", ordinal + 5, "digest", tuple(range(MEMBERS)), latents, images)
    return TrainGroup(SRTask(ordinal, "photo", lr, None, 4, 0), group, np.array(advantages))


def batches(policy: NAOSD, config: RunConfig, groups: list[TrainGroup]) -> list[PreferenceBatch]:
    objective = build_objective(policy, config)
    assert isinstance(objective, PreferenceObjective)
    return list(objective.micro_batches(groups, 0))


def test_latents_are_the_images_encoded_again(policy: NAOSD, config: RunConfig) -> None:
    """One micro-batch a group; z comes from the scored uint8 images, not from the rollout's latents."""
    groups = [make_group(3), make_group(8)]
    found = batches(policy, config, groups)
    assert [batch.policy_version for batch in found] == [8, 13]
    for batch, group in zip(found, groups, strict=True):
        torch.testing.assert_close(batch.z, policy.encode_hr(group.group.images))
        assert batch.advantages.tolist() == pytest.approx(list(group.advantages))


def test_gdpo_draws_noise_per_member_or_group_and_dpo_one_for_the_pair(
    policy: NAOSD, naosd_config: Callable[..., RunConfig]
) -> None:
    gdpo = batches(policy, naosd_config(), [make_group(3)])[0].eps
    assert not torch.equal(gdpo[0], gdpo[1])
    shared = batches(policy, naosd_config("objective.noise=group"), [make_group(3)])[0].eps
    assert all(torch.equal(member, shared[0]) for member in shared)
    pair = batches(policy, naosd_config("objective.type=diffusion_dpo"), [make_group(3)])[0]
    assert torch.equal(pair.eps[0], pair.eps[1])
    assert pair.advantages.tolist() == pytest.approx([1.4, -1.2])
    torch.testing.assert_close(pair.z, policy.encode_hr(make_group(3).group.images[[2, 0]]))


def test_noise_depends_on_seed_and_ordinal_not_on_the_company(
    policy: NAOSD, naosd_config: Callable[..., RunConfig]
) -> None:
    config = naosd_config("objective.draws=2")
    alone, beside = (batches(policy, config, groups) for groups in ([make_group(8)], [make_group(3), make_group(8)]))
    assert len(alone) == 2 and not torch.equal(alone[0].eps, alone[1].eps)
    assert all(torch.equal(one.eps, other.eps) for one, other in zip(alone, beside[1::2], strict=True))


@pytest.mark.parametrize("kind", ["gdpo", "diffusion_dpo"])
def test_at_the_start_the_loss_is_ln_2_and_has_a_gradient(
    policy: NAOSD, naosd_config: Callable[..., RunConfig], kind: str
) -> None:
    """B = 0 makes policy and reference equal, so the margin is 0; the gradient is not."""
    objective = build_objective(policy, naosd_config(f"objective.type={kind}"))
    loss = objective(next(objective.micro_batches([make_group(0)], 0)))
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-5)
    assert abs(loss.terms[Key.LOSS_MARGIN].item()) < 1e-4 and loss.terms[Key.LOSS_DRIFT].item() < 1e-12
    loss.total.backward()
    trained = adapter_parameters(policy.backbone, POLICY)
    assert sum(p.grad.square().sum().item() for n, p in trained.items() if "lora_B" in n and p.grad is not None) > 0
    with_gradient = {id(p) for p in policy.backbone.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in trained.values()}
    assert all(p.grad is None for p in policy.vae.parameters())


@torch.no_grad()
def test_the_reference_is_the_base_and_shares_the_noise(policy: NAOSD, config: RunConfig) -> None:
    """margin = -omega/2 sum A (e_theta - e_ref), with both predictions taken one by one on the same z~."""
    randomise(policy)
    objective = build_objective(policy, config)
    batch = batches(policy, config, [make_group(0)])[0]
    loss = objective(batch)
    z_t = policy.noised(batch.z, batch.eps)
    errors = []
    for adapter in (POLICY, None):
        with using(policy.backbone, adapter):
            errors.append(sample_error(policy.epsilon(z_t, [batch.condition]), batch.eps))
    margin = -2500 * float((batch.advantages * (errors[0] - errors[1])).sum())
    assert abs(margin) > 0.01
    assert loss.terms[Key.LOSS_MARGIN].item() == pytest.approx(margin, rel=1e-3)
    assert loss.terms[Key.LOSS_ERROR].item() == pytest.approx(float(errors[0].mean()), rel=1e-5)


def test_one_step_moves_good_members_errors_down_and_bad_ones_up(policy: NAOSD, config: RunConfig) -> None:
    randomise(policy)
    objective = build_objective(policy, config)
    batch = next(objective.micro_batches([make_group(0)], 0))
    assert isinstance(batch, PreferenceBatch)

    def errors() -> torch.Tensor:
        return sample_error(policy.epsilon(policy.noised(batch.z, batch.eps), [batch.condition]), batch.eps)

    trained = list(adapter_parameters(policy.backbone, POLICY).values())
    gradients = torch.autograd.grad(objective(batch).total, trained)
    with torch.no_grad():
        before = errors()
        norm = torch.nn.utils.get_total_norm(gradients)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter -= 1e-3 * gradient / norm
        moved = errors() - before
    assert float((batch.advantages * moved).sum()) < 0


def test_nft_on_one_step_is_the_loss_of_the_predicted_x0(policy: NAOSD, naosd_config: Callable[..., RunConfig]) -> None:
    """Forced NFT: velocity x_t - x0_hat at t = 1, so on the behaviour the loss is the normalised x0 error's."""
    config = naosd_config("objective={type: nft, allow_one_step: true, kl_weight: 0, timestep_fraction: 1}")
    objective = build_objective(policy, config)
    batch = next(objective.micro_batches([make_group(0)], 0))
    loss = objective(batch)
    with torch.no_grad():
        z_t = policy.noised(batch.x0, batch.eps)
        error = policy.clean(z_t, policy.epsilon(z_t, [batch.condition])) - batch.x0
        normalised = error.square().flatten(1).mean(1) / error.abs().flatten(1).mean(1)
    assert loss.terms[Key.LOSS_POLICY].item() == pytest.approx(5 * float(normalised.mean()), rel=1e-4)


def test_a_policy_of_the_wrong_kind_is_refused_by_the_config(naosd_config: Callable[..., RunConfig]) -> None:
    flow = "policy={type: flux2sr}"
    with pytest.raises(ValueError, match="objective 'gdpo' needs a one-step generator, got policy 'flux2sr'"):
        naosd_config(flow)
    with pytest.raises(ValueError, match="allow_one_step: true"):
        naosd_config("objective={type: nft}")
