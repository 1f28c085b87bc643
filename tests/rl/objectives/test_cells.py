"""Losses with an advantage per cell: numbers of their formulas in plain loops, finite differences, and the scalar
losses that they equal where a map is constant."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rl.config.objective import Judged, NFTSection
from rl.flow.cells import WHOLE, Cells, over_cells
from rl.flow.schedule import interpolated
from rl.flow.sde import StepMoments, gaussian_step, log_prob
from rl.objectives.grpo import grpo_loss, guard_log_ratio, ratio
from rl.objectives.nft import nft_loss
from rl.objectives.preference import preference_loss, sample_error

B, C, H, W = 3, 2, 4, 6
POOLS = (1, 2, 4, 5)
NFT_TOTAL, NFT_GRADIENT_NORM = 0.36567606130350355, 0.18194558664187108
ZEROS = torch.zeros(B, C, H, W, dtype=torch.float64)


def wave(frequency: float, *shape: int) -> Tensor:
    """sin(frequency k), k = 1, 2, ...: the same tensor under every torch."""
    count = math.prod(shape)
    return torch.sin(frequency * torch.arange(1, count + 1, dtype=torch.float64)).view(shape)


def places(pool: int) -> Iterator[tuple[int, int, slice, slice]]:
    """(row, column, latent rows, latent columns) of every cell."""
    for row, column in itertools.product(range(-(-H // pool)), range(-(-W // pool))):
        yield row, column, slice(row * pool, (row + 1) * pool), slice(column * pool, (column + 1) * pool)


def share(rows: slice, columns: slice) -> float:
    return len(range(H)[rows]) * len(range(W)[columns]) / (H * W)


def shares_of(pool: int) -> Tensor:
    shares = Cells(pool).shares(ZEROS)
    assert shares is not None
    return shares


def map_of(pool: int, frequency: float = 5.3) -> Tensor:
    return wave(frequency, B, -(-H // pool), -(-W // pool))


@pytest.mark.parametrize("pool", POOLS)
def test_cell_means_and_shares_by_hand(pool: int) -> None:
    """Edge cells are smaller (5 on 4 x 6: one row of cells, 4 x 5 and 4 x 1); shares give the whole mean."""
    x, cells = wave(0.7, B, C, H, W), Cells(pool)
    means, shares = cells.mean(x), shares_of(pool)
    for row, column, rows, columns in places(pool):
        assert means[:, row, column].tolist() == pytest.approx(x[:, :, rows, columns].mean(dim=(1, 2, 3)).tolist())
        assert shares[row, column].item() == pytest.approx(share(rows, columns), abs=1e-12)
    torch.testing.assert_close(over_cells(means, shares), x.mean(dim=(1, 2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("cells", [WHOLE, Cells(6), Cells(100)])
def test_one_cell_is_the_whole_latent_bit_for_bit(cells: Cells) -> None:
    x = wave(0.7, B, C, H, W).float()
    assert cells.shares(x) is None and cells.grid(x) == ()
    assert torch.equal(cells.mean(x), x.flatten(1).mean(1))


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"advantage.pool 2 .* expected advantages on a grid \(2, 3\), got \(4, 6\)"):
        Cells(2).check(torch.zeros(B, H, W), ZEROS)


class NFTCase:
    """Tensors of a small batch whose policy has left its anchor."""

    def __init__(self, normaliser: str = "sample") -> None:
        self.x0, self.eps = wave(0.7, B, C, H, W), 1.3 * wave(1.9, B, C, H, W)
        self.t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        self.v_old = self.eps - self.x0 + 0.2 * wave(2.3, B, C, H, W)
        self.v_theta = (self.v_old + 0.15 * wave(3.1, B, C, H, W)).requires_grad_()
        self.values = NFTSection.model_validate(
            {"beta": 0.5, "adv_clip_max": 2.0, "kl_weight": 0.0, "normaliser": normaliser}
        )

    def loss(self, r: Tensor, cells: Cells, v_theta: Tensor | None = None) -> Tensor:
        x_t = interpolated(self.x0, self.eps, self.t)
        v = self.v_theta if v_theta is None else v_theta
        return nft_loss(v, self.v_old, None, self.x0, x_t, self.t, r, self.values, cells).total

    def by_hand(self, r: Tensor, pool: int) -> float:
        """The formula, one member, cell and sign at a time."""
        x_t, beta, total = interpolated(self.x0, self.eps, self.t), self.values.beta, 0.0
        for b, (row, column, rows, columns), sign in itertools.product(range(B), places(pool), (1, -1)):
            v = (1 - sign * beta) * self.v_old[b] + sign * beta * self.v_theta[b]
            error = (x_t[b] - self.t[b] * v - self.x0[b]).detach()
            cell = error[:, rows, columns]
            normaliser = (cell if self.values.normaliser == "cell" else error).abs().mean()
            weight = r[b, row, column] if sign == 1 else 1 - r[b, row, column]
            total += share(rows, columns) * (weight * cell.square().mean() / normaliser).item()
        return total / B * self.values.adv_clip_max / beta


@pytest.mark.parametrize("normaliser", ["sample", "cell"])
@pytest.mark.parametrize("pool", POOLS)
def test_nft_is_its_formula(pool: int, normaliser: str) -> None:
    case, r = NFTCase(normaliser), (map_of(pool) + 1) / 2
    assert case.loss(r, Cells(pool)).item() == pytest.approx(case.by_hand(r, pool), abs=1e-12)


def test_nft_golden() -> None:
    """The formula in loops, and its central differences at fixed normalisers, run once in numpy alone."""
    case, r = NFTCase(), (map_of(2) + 1) / 2
    total = case.loss(r, Cells(2))
    total.backward()
    assert case.v_theta.grad is not None
    assert total.item() == pytest.approx(NFT_TOTAL, abs=1e-12)
    assert case.v_theta.grad.norm().item() == pytest.approx(NFT_GRADIENT_NORM, abs=1e-9)


def differences(loss: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences along every value."""
    gradient = torch.zeros_like(at)
    for k in range(at.numel()):
        nudge = torch.zeros_like(at).view(-1)
        nudge[k] = step
        nudge = nudge.view(at.shape)
        gradient.view(-1)[k] = (loss(at + nudge) - loss(at - nudge)) / (2 * step)
    return gradient


def test_the_gradient_of_nft_is_its_difference_quotient_with_the_normaliser_held() -> None:
    """sg(.) is no derivative, so the quotient is taken at r of the normaliser's own cell, frozen by hand."""
    case, r, cells = NFTCase(), (map_of(2) + 1) / 2, Cells(2)
    case.loss(r, cells).backward()
    x_t, beta, shares = interpolated(case.x0, case.eps, case.t), case.values.beta, shares_of(2)
    assert case.v_theta.grad is not None
    frozen = [
        (x_t - case.t.view(-1, 1, 1, 1) * ((1 - s * beta) * case.v_old + s * beta * case.v_theta.detach()) - case.x0)
        .abs().mean(dim=(1, 2, 3)) for s in (1, -1)
    ]  # fmt: skip

    def loss(v_theta: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for s, normaliser, weight in ((1, frozen[0], r), (-1, frozen[1], 1 - r)):
            v = (1 - s * beta) * case.v_old + s * beta * v_theta
            e = cells.mean((x_t - case.t.view(-1, 1, 1, 1) * v - case.x0).square()) / normaliser.view(-1, 1, 1)
            total = total + over_cells(weight * e, shares).mean()
        return total * case.values.adv_clip_max / beta

    torch.testing.assert_close(case.v_theta.grad, differences(loss, case.v_theta.detach()), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_nft_at_a_constant_map_is_the_scalar_loss(pool: int) -> None:
    r = torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64)
    losses, gradients = [], []
    for weights, cells in ((r, WHOLE), (r.view(-1, 1, 1).expand_as(map_of(pool)), Cells(pool))):
        case = NFTCase()
        losses.append(case.loss(weights, cells))
        losses[-1].backward()
        gradients.append(case.v_theta.grad)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-12, rtol=1e-12)


def test_nft_pulls_each_cell_by_its_own_weight() -> None:
    """r = 1/2 everywhere leaves a policy on its anchor alone (gradient 0); a better cell moves only itself."""
    case = NFTCase()
    policy = case.v_old.clone().requires_grad_()
    r = torch.full((B, 2, 3), 0.5, dtype=torch.float64)
    r[1, 0, 2] = 1.0
    case.loss(r, Cells(2), policy).backward()
    assert policy.grad is not None
    moved = policy.grad.abs().sum(dim=1) > 1e-12
    expected = torch.zeros(B, H, W, dtype=torch.bool)
    expected[1, :2, 4:] = True
    assert torch.equal(moved, expected)


JUDGED: tuple[Judged, ...] = ("image", "cell")


@pytest.mark.parametrize("judged", JUDGED)
@pytest.mark.parametrize("pool", POOLS)
def test_preferences_are_their_formula(pool: int, judged: Judged) -> None:
    d, c = 0.1 * map_of(pool, 2.9), 3 * map_of(pool)
    shares = shares_of(pool)
    inside = [
        (share(rows, columns), -sum(c[i, row, column].item() * d[i, row, column].item() for i in range(B)))
        for row, column, rows, columns in places(pool)
    ]
    if judged == "image":
        expected = math.log1p(math.exp(-sum(s * value for s, value in inside)))
    else:
        expected = sum(s * math.log1p(math.exp(-value)) for s, value in inside)
    assert preference_loss(d, c, shares, judged)[0].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("pool", POOLS)
def test_image_at_a_constant_map_is_the_scalar_preference(pool: int) -> None:
    """`cell` is it too where errors are constant as well; elsewhere it is larger: -log sigmoid is convex (Jensen)."""
    prediction, target, c = wave(0.7, B, C, H, W), wave(1.1, B, C, H, W), torch.tensor([0.4, -1.1, 0.7]).double()
    cells, flat = Cells(pool), c.view(-1, 1, 1).expand_as(map_of(pool))
    shares = shares_of(pool)
    scalar = preference_loss(sample_error(prediction, target), c)[0]
    d = sample_error(prediction, target, cells)
    assert preference_loss(d, flat, shares, "image")[0].item() == pytest.approx(scalar.item(), abs=1e-12)
    assert preference_loss(d, flat, shares, "cell")[0] >= scalar - 1e-12
    level = torch.tensor([0.2, 0.3, -0.1]).double()
    even = level.view(-1, 1, 1).expand_as(flat)
    expected = preference_loss(level, c)[0].item()
    assert preference_loss(even, flat, shares, "cell")[0].item() == pytest.approx(expected, abs=1e-12)


def test_at_the_reference_both_ways_to_judge_are_ln_2_with_the_same_gradient() -> None:
    c, shares = map_of(1), shares_of(1)
    gradients = []
    for judged in JUDGED:
        d = torch.zeros_like(c).requires_grad_()
        loss = preference_loss(d, c, shares, judged)[0]
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
        gradients.append(d.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("judged", JUDGED)
def test_the_gradient_of_a_preference_is_its_difference_quotient(judged: Judged) -> None:
    c, shares, d = 3 * map_of(2), shares_of(2), (0.1 * map_of(2, 2.9)).requires_grad_()
    preference_loss(d, c, shares, judged)[0].backward()
    expected = differences(lambda x: preference_loss(x, c, shares, judged)[0], d.detach())
    torch.testing.assert_close(d.grad, expected, atol=1e-9, rtol=1e-6)


MOMENTS = StepMoments(wave(1.7, B, C, H, W), 0.3, 0.1, density=True)


@pytest.mark.parametrize("pool", POOLS)
def test_log_probabilities_of_cells_average_to_that_of_the_latent(pool: int) -> None:
    x_next, cells = wave(0.3, B, C, H, W), Cells(pool)
    shares = shares_of(pool)
    whole = log_prob(x_next, MOMENTS)
    torch.testing.assert_close(over_cells(log_prob(x_next, MOMENTS, cells), shares), whole, atol=1e-12, rtol=0)
    normal = torch.distributions.Normal(MOMENTS.mean, MOMENTS.std)
    for row, column, rows, columns in places(pool):
        expected = normal.log_prob(x_next)[:, :, rows, columns].mean(dim=(1, 2, 3))
        torch.testing.assert_close(log_prob(x_next, MOMENTS, cells)[:, row, column], expected)


@pytest.mark.parametrize("pool", POOLS)
def test_a_fresh_ratio_is_exactly_one_in_every_cell(pool: int) -> None:
    """In float32 and float64, by sampling a step and evaluating it again; GRPO-Guard's ratio too."""
    for dtype in (torch.float32, torch.float64):
        moments = StepMoments(MOMENTS.mean.to(dtype), MOMENTS.std, MOMENTS.dt, density=True)
        taken = gaussian_step(moments, noise=wave(0.9, B, C, H, W).to(dtype), cells=Cells(pool))
        again = gaussian_step(moments, x_next=taken.x_next, cells=Cells(pool))
        assert torch.equal(ratio(again.logp, taken.logp), torch.ones_like(taken.logp))
        guarded = guard_log_ratio(again.logp, taken.logp, moments, moments.mean, Cells(pool))
        assert torch.equal(guarded, torch.zeros_like(taken.logp))


def grpo(logp: Tensor, old: Tensor, advantages: Tensor, shares: Tensor | None, clip: float = 0.05) -> Tensor:
    return grpo_loss(
        ratio(logp, old), advantages, None, clip=clip, adv_clip_max=5.0, kl_weight=0.0, step_weight=1.0, shares=shares
    ).total


@pytest.mark.parametrize("pool", POOLS)
def test_every_cell_has_its_own_ratio_and_clip(pool: int) -> None:
    old, advantages, shares = map_of(pool, 1.3), map_of(pool), shares_of(pool)
    logp, expected, clipped = old + 0.2 * map_of(pool, 4.1), 0.0, 0
    for b, (row, column, rows, columns) in itertools.product(range(B), places(pool)):
        r, a = math.exp(logp[b, row, column] - old[b, row, column]), advantages[b, row, column].item()
        clipped += not 0.95 <= r <= 1.05
        expected += share(rows, columns) * max(-a * r, -a * min(max(r, 0.95), 1.05)) / B
    assert clipped > 0
    assert grpo(logp, old, advantages, shares).item() == pytest.approx(expected, abs=1e-12)


def test_grpo_at_a_constant_map_has_the_scalar_gradient_where_the_policy_is_fresh() -> None:
    """Beyond it a mean of exponentials is not the exponential of a mean."""
    mean, x_next = MOMENTS.mean.clone(), wave(0.3, B, C, H, W)
    a = torch.tensor([0.4, -1.1, 0.7]).double()
    gradients = []
    for advantages, cells in ((a, WHOLE), (a.view(-1, 1, 1).expand_as(map_of(2)), Cells(2))):
        mu = mean.clone().requires_grad_()
        logp = log_prob(x_next, StepMoments(mu, 0.3, 0.1, density=True), cells)
        grpo(logp, logp.detach(), advantages, cells.shares(x_next)).backward()
        gradients.append(mu.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-12, rtol=1e-12)


def test_the_gradient_of_grpo_is_its_difference_quotient() -> None:
    old, advantages, shares = map_of(2, 1.3), map_of(2), shares_of(2)
    logp = (old + 0.01 * map_of(2, 4.1)).requires_grad_()
    grpo(logp, old, advantages, shares).backward()
    expected = differences(lambda x: grpo(x, old, advantages, shares), logp.detach())
    torch.testing.assert_close(logp.grad, expected, atol=1e-9, rtol=1e-6)
