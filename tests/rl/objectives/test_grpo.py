"""GRPO's losses against numbers of their published code (tests/rl/golden/grpo.json says which and how made), and the
laws that the docstrings state."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rl.flow.sde import SDEStep, StepKind, StepMoments, cps, sde_step
from rl.objectives.grpo import GRPOLoss, grpo_loss, guard_log_ratio, ratio, reference_kl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "grpo.json").read_text())
SHAPE = (6, 2, 3, 4)
LEVEL: dict[StepKind, float] = {"flow_sde": 0.7, "cps": 0.8, "dance": 0.3}
FLOW_GRPO = {"clip": 1e-4, "adv_clip_max": 5.0, "kl_weight": 0.04, "step_weight": 1.0}
DANCE_GRPO = {"clip": 1e-4, "adv_clip_max": 5.0, "kl_weight": 0.0, "step_weight": 1.0}


def wave(frequency: float, *shape: int) -> Tensor:
    """sin(frequency k), k = 1, 2, ...: the same tensor under every torch."""
    return torch.sin(frequency * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).view(shape)


def golden_input(name: str) -> Tensor:
    amplitude, frequency = GOLDEN["inputs"][name]
    return amplitude * wave(frequency, *GOLDEN["shape"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_at(
    kind: StepKind, x: Tensor, v: Tensor, *, noise: Tensor | None = None, x_next: Tensor | None = None
) -> SDEStep:
    return sde_step(kind, x, v, 0.8, 0.6, s_max=0.9, noise_level=LEVEL[kind], noise=noise, x_next=x_next)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_loss_equals_flow_grpo_and_dance_grpo() -> None:
    """Six members: one of two advantages beyond 5 clipped, two ratios above 1 + c, one below 1 - c; to 1e-10."""
    golden = GOLDEN["losses"]
    published, advantages = golden["flow_grpo"], values(*golden["advantages"])
    old = wave(0.3, 6)
    logp = (old + values(*golden["delta"])).requires_grad_()
    mean = wave(0.9, 6, 1, 2, 2).requires_grad_()
    moments = StepMoments(mean, golden["sigma_t"] * math.sqrt(golden["dt"]), golden["dt"], density=True)
    kl = reference_kl(moments, mean.detach() + 0.05 * wave(1.7, 6, 1, 2, 2))
    r = ratio(logp, old)
    loss = grpo_loss(r, advantages, kl, **FLOW_GRPO)
    gradients = torch.autograd.grad(loss.total, (logp, mean))
    for name in ("total", "policy", "kl", "clipped_low", "clipped_high"):
        assert getattr(loss, name).item() == pytest.approx(published[name], rel=1e-10)
    assert loss.max_deviation.item() == pytest.approx(max(abs(r - 1) for r in published["ratio"]), rel=1e-10)
    for gradient, name in zip(gradients, ("gradient_logp", "gradient_mean"), strict=True):
        assert gradient.flatten().tolist() == pytest.approx(published[name], rel=1e-10, abs=1e-15)
    dance = grpo_loss(ratio(logp, old), advantages, None, **DANCE_GRPO)
    assert dance.total.item() == pytest.approx(golden["dance_grpo"]["total"], rel=1e-10)
    assert dance.kl.item() == 0.0


def guard_case() -> tuple[Tensor, SDEStep, SDEStep]:
    """(v, the behaviour's step, the policy's step) of the golden run, whose v lies 2e-3 from v_old."""
    golden, levels = GOLDEN["guard"], GOLDEN["sigmas"]
    k = golden["step"]
    x, v_old, noise = (golden_input(name)[k] for name in ("x", "v", "noise"))
    v = (v_old + 2e-3 * wave(3.7, *GOLDEN["shape"])[k]).requires_grad_()
    at = {"s_max": levels[1], "noise_level": golden["noise_level"]}
    old = sde_step("flow_sde", x, v_old, levels[k], levels[k + 1], **at, noise=noise)
    return v, old, sde_step("flow_sde", x, v, levels[k], levels[k + 1], **at, x_next=old.x_next)


@pytest.mark.parametrize("published", GOLDEN["guard"]["cases"], ids=lambda case: f"clip={case['clip']}")
def test_guard_equals_verl_omni_and_flow_factory(published: dict) -> None:
    """verl-omni with the weight 1 / dt, Flow-Factory without; under the narrow clip one member has no gradient."""
    v, old, new = guard_case()
    advantages = values(*GOLDEN["guard"]["advantages"])
    r = guard_log_ratio(new.logp, old.logp, new.moments, old.moments.mean).exp()
    assert r.tolist() == pytest.approx(published["ratio"], rel=1e-10)
    setting = {"clip": published["clip"], "adv_clip_max": 5.0, "kl_weight": 0.0}
    weighted = grpo_loss(r, advantages, None, **setting, step_weight=1 / new.moments.dt)
    plain = grpo_loss(r, advantages, None, **setting, step_weight=1.0)
    assert weighted.total.item() == pytest.approx(published["verl_total"], rel=1e-10)
    assert plain.total.item() == pytest.approx(published["flow_factory_total"], rel=1e-10)
    shares = weighted.clipped_low.item(), weighted.clipped_high.item()
    assert shares == (published["clipped_low"], published["clipped_high"])
    (gradient,) = torch.autograd.grad(weighted.total, v)
    assert gradient.flatten().tolist() == pytest.approx(published["gradient"], rel=1e-10, abs=1e-15)


def test_guard_equals_flow_grpos_script_for_one_member() -> None:
    """With one member the script's mean over the batch is the mean over the member."""
    _, old, new = guard_case()
    r = guard_log_ratio(new.logp, old.logp, new.moments, old.moments.mean).exp()
    for i, published in enumerate(GOLDEN["guard"]["script_single"]):
        one = slice(i, i + 1)
        loss = grpo_loss(
            r[one], values(*GOLDEN["guard"]["advantages"])[one], None,
            clip=1e-2, adv_clip_max=5.0, kl_weight=0.0, step_weight=1 / new.moments.dt,
        )  # fmt: skip
        assert loss.total.item() == pytest.approx(published, rel=1e-10)


def test_two_members_by_hand() -> None:
    """A = (2, -1), r = (1.5, 0.5), c = 0.2: max(-3, -2.4) = -2.4 and max(0.5, 0.8) = 0.8; mean -0.8; KL 3 times 0.1."""
    loss = grpo_loss(
        values(1.5, 0.5), values(2.0, -1.0), values(2.0, 4.0),
        clip=0.2, adv_clip_max=5.0, kl_weight=0.1, step_weight=10.0,
    )  # fmt: skip
    assert loss.policy.item() == pytest.approx(-8.0, abs=1e-12)
    assert loss.total.item() == pytest.approx(-7.7, abs=1e-12), "the step weight scales the policy alone"
    got = (loss.kl.item(), loss.clipped_low.item(), loss.clipped_high.item(), loss.max_deviation.item())
    assert got == pytest.approx((3.0, 0.5, 0.5, 0.5), abs=1e-12)


def on_behaviour(advantages: Tensor) -> tuple[GRPOLoss, Tensor]:
    logp = wave(0.3, len(advantages)).requires_grad_()
    loss = grpo_loss(ratio(logp, logp.detach()), advantages, None, **DANCE_GRPO)
    return loss, torch.autograd.grad(loss.total, logp)[0]


def test_gradient_on_the_behaviour_is_the_advantage() -> None:
    """At r = 1 the loss is -mean A and its gradient in logp -A / B, advantages beyond 5 at 5."""
    loss, gradient = on_behaviour(values(-3.0, -0.4, 0.0, 0.6, 4.9, 8.0))
    expected = values(-3.0, -0.4, 0.0, 0.6, 4.9, 5.0)
    assert loss.total.item() == pytest.approx(-expected.mean().item(), abs=1e-12)
    torch.testing.assert_close(gradient, -expected / 6, rtol=1e-12, atol=1e-15)
    assert (loss.max_deviation.item(), loss.clipped_low.item(), loss.clipped_high.item()) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", ["flow_sde", "cps", "dance"])
def test_descent_makes_good_samples_likelier_and_bad_ones_less(kind: StepKind) -> None:
    """One small step on the members' velocities: logp rises where the advantage is positive, falls where negative."""
    x, v, noise = (normal(*SHAPE, seed=seed) for seed in range(3))
    v.requires_grad_()
    step = step_at(kind, x, v, noise=noise)
    advantages = values(1.0, -1.0, 2.0, -0.3, 0.0, -2.0)
    loss = grpo_loss(ratio(step.logp, step.logp.detach()), advantages, None, **DANCE_GRPO)
    (gradient,) = torch.autograd.grad(loss.total, v)
    moved = step_at(kind, x, v.detach() - 1e-3 * gradient, x_next=step.x_next.detach())
    assert torch.equal((moved.logp - step.logp).sign(), advantages.sign())


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("r", [0.9, 0.99, 1.0, 1.01, 1.1])
def test_clip_kills_the_gradient_of_a_ratio_that_went_its_way(r: float, advantage: float) -> None:
    """Outside 1 +- c there is a gradient only back towards 1."""
    leaf = values(r).requires_grad_()
    loss = grpo_loss(leaf, values(advantage), None, clip=0.05, adv_clip_max=5.0, kl_weight=0.0, step_weight=1.0)
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    went_its_way = advantage * (r - 1) > 0.05
    assert gradient.item() == (0.0 if went_its_way else -advantage)


def test_reference_kl_is_dt_times_the_kl_of_the_gaussians() -> None:
    """The published form lacks 1 / dt; CPS has no dt in its std, and there it is the KL itself."""
    x, v, v_ref, noise = (normal(*SHAPE, seed=seed) for seed in range(4))
    for kind in LEVEL:
        new, ref = (step_at(kind, x, velocity, noise=noise).moments for velocity in (v, v_ref))
        exact = kl_divergence(Normal(new.mean, new.std), Normal(ref.mean, ref.std)).mean(dim=(1, 2, 3))
        factor = 1.0 if kind == "cps" else new.dt
        torch.testing.assert_close(reference_kl(new, ref.mean), factor * exact, rtol=1e-12, atol=0)
        assert not reference_kl(new, new.mean).any()


@pytest.mark.parametrize("kind", ["flow_sde", "dance"])
def test_guard_log_ratio_is_the_noise_along_the_move(kind: StepKind) -> None:
    """mean(n (mu - mu_old)), so 0 in the mean over draws, where the plain log-ratio has -mean (mu - mu_old)^2 / (2 g^2)
    of drift; and exactly 0 at mu = mu_old."""
    x, v = normal(1, 2, 3, 4), normal(1, 2, 3, 4, seed=1)
    x, v = (tensor.expand(20000, -1, -1, -1) for tensor in (x, v))
    noise = normal(20000, 2, 3, 4, seed=2)
    old = step_at(kind, x, v, noise=noise)
    new = step_at(kind, x, v + 0.3 * normal(1, 2, 3, 4, seed=3), x_next=old.x_next)
    moved = new.moments.mean - old.moments.mean
    guarded = guard_log_ratio(new.logp, old.logp, new.moments, old.moments.mean)
    torch.testing.assert_close(guarded, (noise * moved).mean(dim=(1, 2, 3)), rtol=0, atol=1e-12)
    assert abs(guarded.mean()) < 4 * guarded.std() / math.sqrt(len(guarded))
    plain, g = new.logp - old.logp, new.moments.std
    drift = moved.square().mean().item() / (2 * g**2)
    assert plain.mean().item() == pytest.approx(-drift, abs=4 * plain.std().item() / math.sqrt(len(plain)))
    assert -plain.mean() > 4 * plain.std() / math.sqrt(len(plain))
    same = step_at(kind, x, v, x_next=old.x_next)
    assert not guard_log_ratio(same.logp, old.logp, same.moments, old.moments.mean).any()


def test_guard_refuses_cps() -> None:
    x = normal(*SHAPE)
    moments = cps(x, x, 0.8, 0.6, 0.9, 0.8)
    with pytest.raises(ValueError, match="log-density"):
        guard_log_ratio(values(0.0), values(0.0), moments, moments.mean)
