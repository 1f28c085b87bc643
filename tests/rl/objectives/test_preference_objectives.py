"""GDPO and Diffusion-DPO on the learner: what a micro-batch holds, what the reference is, where gradients go, on a
one-step DDPM and on a flow."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rl.config.online import RunConfig
from rl.metrics import Key
from rl.objectives.preference import PreferenceBatch, PreferenceObjective, sample_error
from rl.policies.lora import POLICY
from rl.preferences import train_item
from rl.types import PreferencePairs, TrainGroup, TrainItem

Build = Callable[..., PreferenceObjective]
Configure = Callable[..., RunConfig]
MakeGroup = Callable[..., TrainGroup]
Randomise = Callable[..., None]


@pytest.fixture
def objective(build: Build, naosd_config: Configure) -> PreferenceObjective:
    return build(naosd_config())


def items(objective: PreferenceObjective, *groups: TrainGroup) -> list[TrainItem]:
    """What the controller hands the learner of these groups."""
    pairs = objective.run_config.objective.pairs
    return [train_item(group.task, group.group, group.advantages, pairs=pairs) for group in groups]


def batches(objective: PreferenceObjective, *groups: TrainGroup) -> list[PreferenceBatch]:
    return list(objective.micro_batches(items(objective, *groups), 0))


@torch.no_grad()
def errors(objective: PreferenceObjective, batch: PreferenceBatch, adapter: str | None = POLICY) -> torch.Tensor:
    z_t = objective.policy.noised(batch.z, batch.eps, batch.t)
    with objective.adapters.using(adapter):
        prediction = objective.policy.prediction(z_t, batch.t, [batch.condition])
    return sample_error(prediction, objective.policy.target(batch.z, batch.eps, batch.t))


def test_latents_are_the_images_encoded_again(objective: PreferenceObjective, make_group: MakeGroup) -> None:
    """One micro-batch a group; z comes from the scored uint8 images, not from the rollout's latents."""
    groups = [make_group(3), make_group(8)]
    found = batches(objective, *groups)
    assert [(batch.ordinal, batch.policy_version, batch.share) for batch in found] == [(3, 8, 1.0), (8, 13, 1.0)]
    for batch, group in zip(found, groups, strict=True):
        torch.testing.assert_close(batch.z, objective.policy.encode_hr(group.group.images))
        assert batch.coefficients.tolist() == pytest.approx(list(2500 * group.advantages))


@pytest.mark.parametrize(("kind", "members"), [("gdpo", 4), ("diffusion_dpo", 2)])
def test_an_image_is_encoded_once_for_all_draws(
    build: Build,
    naosd_config: Configure,
    make_group: MakeGroup,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    members: int,
) -> None:
    """The VAE costs more than a one-step UNet; of a group Diffusion-DPO encodes the pair alone."""
    objective = build(naosd_config(f"objective={{type: {kind}, draws: 3}}"))
    encode, calls = objective.policy.encode_hr, []
    monkeypatch.setattr(objective.policy, "encode_hr", lambda images: calls.append(len(images)) or encode(images))
    found = batches(objective, make_group(3), make_group(8))
    assert len(found) == 6
    assert calls == [members, members]


def test_gdpo_draws_noise_per_member_or_group_and_dpo_one_for_the_pair(
    build: Build, naosd_config: Configure, make_group: MakeGroup
) -> None:
    gdpo = batches(build(naosd_config()), make_group(3))[0].eps
    assert not torch.equal(gdpo[0], gdpo[1])
    shared = batches(build(naosd_config("objective.noise=group")), make_group(3))[0].eps
    assert all(torch.equal(member, shared[0]) for member in shared)
    objective = build(naosd_config("objective.type=diffusion_dpo"))
    (pair,) = batches(objective, make_group(3))
    assert torch.equal(pair.eps[0], pair.eps[1])
    assert pair.coefficients.tolist() == [2500.0, -2500.0]
    torch.testing.assert_close(pair.z, objective.policy.encode_hr(make_group(3).group.images[[2, 0]]))


def test_on_a_flow_members_have_levels_of_their_own_and_a_pair_shares_one(
    build: Build, run_config: Configure, make_group: MakeGroup
) -> None:
    """Levels are uniform in [0, 1), as flow matching is trained; what shares its noise shares its level."""
    (own,) = batches(build(run_config("objective={type: gdpo}")), make_group(3))
    assert len(set(own.t.tolist())) == 4 and all(0 <= t < 1 for t in own.t.tolist())
    (shared,) = batches(build(run_config("objective={type: gdpo, noise: group}")), make_group(3))
    (pair,) = batches(build(run_config("objective={type: diffusion_dpo}")), make_group(3))
    assert len(set(shared.t.tolist())) == len(set(pair.t.tolist())) == 1


def test_noise_depends_on_seed_and_ordinal_not_on_the_company(
    build: Build, naosd_config: Configure, make_group: MakeGroup
) -> None:
    objective = build(naosd_config("objective.draws=2"))
    alone, beside = batches(objective, make_group(8)), batches(objective, make_group(3), make_group(8))
    assert len(alone) == 2 and not torch.equal(alone[0].eps, alone[1].eps)
    assert all(torch.equal(one.eps, other.eps) for one, other in zip(alone, beside[1::2], strict=True))


@pytest.mark.parametrize("kind", ["gdpo", "diffusion_dpo"])
@pytest.mark.parametrize("policy", ["naosd", "flux2sr"])
def test_at_the_start_the_loss_is_ln_2_and_has_a_gradient(
    build: Build, configure: Configure, make_group: MakeGroup, policy: str, kind: str
) -> None:
    """B = 0 makes policy and reference equal, so the margin is 0; the gradient is not."""
    objective = build(configure(policy, f"objective={{type: {kind}}}"))
    (batch,) = batches(objective, make_group(0))
    loss = objective(batch)
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-6)
    assert abs(loss.terms[Key.LOSS_MARGIN].item()) < 2e-6 and loss.terms[Key.LOSS_DRIFT].item() < 1e-12
    loss.total.backward()
    trained = objective.adapters.parameters(POLICY)
    assert sum(p.grad.square().sum().item() for n, p in trained.items() if "lora_B" in n and p.grad is not None) > 0
    with_gradient = {id(p) for p in objective.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in trained.values()}


def test_the_reference_is_the_base_and_shares_the_noise(
    objective: PreferenceObjective, make_group: MakeGroup, randomise: Randomise
) -> None:
    """margin = -omega/2 sum A (e_theta - e_ref), with both predictions taken one by one on the same z~."""
    randomise(objective, POLICY, 1)
    group = make_group(0)
    (batch,) = batches(objective, group)
    loss = objective(batch)
    e_theta, e_ref = errors(objective, batch), errors(objective, batch, None)
    margin = -2500 * float((torch.from_numpy(group.advantages) * (e_theta - e_ref)).sum())
    assert abs(margin) > 0.01
    assert loss.terms[Key.LOSS_MARGIN].item() == pytest.approx(margin, rel=1e-3)
    assert loss.terms[Key.LOSS_ERROR].item() == pytest.approx(float(e_theta.mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["gdpo", "diffusion_dpo"])
@pytest.mark.parametrize("policy", ["naosd", "flux2sr"])
def test_one_step_raises_the_margin(
    build: Build,
    configure: Configure,
    make_group: MakeGroup,
    randomise: Randomise,
    policy: str,
    kind: str,
) -> None:
    """Good members' errors fall against bad ones': sum c_i e_i falls, by the same noise the loss falls."""
    objective = build(configure(policy, f"objective={{type: {kind}}}"))
    randomise(objective, POLICY, 1)
    (batch,) = batches(objective, make_group(0))
    trained = list(objective.adapters.parameters(POLICY).values())
    loss = objective(batch)
    gradients = torch.autograd.grad(loss.total, trained)
    before = errors(objective, batch)
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm(gradients)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter -= 1e-3 * gradient / norm
        after = objective(batch)
    assert float((batch.coefficients * (errors(objective, batch) - before)).sum()) < 0
    assert after.terms[Key.LOSS_MARGIN] > loss.terms[Key.LOSS_MARGIN]
    assert after.total.item() < loss.total.item()


def test_pairs_of_a_pool_are_weighed(build: Build, naosd_config: Configure, make_group: MakeGroup) -> None:
    """Two pairs of one group, weights 3 and 1: one micro-batch each, shares 3/4 and 1/4, each with noise of its own."""
    objective = build(naosd_config("objective.type=diffusion_dpo"))
    group = make_group(0)
    pool = PreferencePairs(group.task, group.group, np.array([2, 1]), np.array([0, 3]), np.array([3.0, 1.0]))
    first, second = objective.micro_batches([pool], 0)
    assert (first.share, second.share) == (0.75, 0.25)
    assert not torch.equal(first.eps, second.eps)
    torch.testing.assert_close(second.z, objective.policy.encode_hr(group.group.images[[1, 3]]))
    losses = [objective(batch).total.item() for batch in (first, second)]
    assert losses == pytest.approx([0.75 * math.log(2), 0.25 * math.log(2)], abs=1e-6)
