"""Tiled restoration: any size in, scale times as large out, and no trace of the tiles."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config.policy import policy_section
from rl.config.rollout import ODESection, OneStepSection
from rl.flow.sampler import sample
from rl.flow.schedule import flow_sigmas
from rl.policies import load_policy
from rl.policies.base import FlowPolicy, LatentCondition, OneStepPolicy, Policy, member_noise, to_uint8
from rl.restoration.tiles import _gaussian, _pad, _starts, restore_image, tiled, tiled_policy

SAMPLER = ODESection(solver="euler", steps=3)


@pytest.fixture(scope="module")
def policy(tiny_flux2_folder: Path) -> Policy:
    return loaded(path=str(tiny_flux2_folder), shift=1.0)


def loaded(**keys: Any) -> Policy:
    policy = load_policy(policy_section(**keys))
    for module in policy.modules.values():
        module.eval()
    return policy


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (3, height, width), dtype=np.uint8)


class Analytic(FlowPolicy):
    """Its velocity is a given function of x, t and the condition's latents; it has no model."""

    def __init__(self, velocity: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._velocity = velocity
        self.calls: list[tuple[int, ...]] = []

    def prediction(self, x_t: Tensor, t: Tensor, conditions: Sequence[LatentCondition]) -> Tensor:
        self.calls.append(tuple(x_t.shape))
        return self._velocity(x_t, t.view(-1, 1, 1, 1), torch.cat([c.latents for c in conditions]))


Analytic.__abstractmethods__ = frozenset()  # tiling asks for its prediction alone


def tiled_velocity(policy: Policy, cond: LatentCondition, *, tile: int, overlap: int) -> Callable[..., Tensor]:
    """v(x, s) of the tiled view of a policy."""
    velocity: Callable[..., Tensor] = tiled_policy(policy, tile=tile, overlap=overlap).velocity([cond])  # type: ignore[attr-defined]
    return velocity


def condition(height: int, width: int, channels: int = 2) -> LatentCondition:
    return LatentCondition(torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("height", "width", "scale"), [(13, 21, 4), (33, 9, 2), (7, 50, 3), (45, 31, 1), (5, 5, 8)])
def test_odd_sizes_come_out_scale_times_as_large(policy: Policy, height: int, width: int, scale: int) -> None:
    out = restore_image(policy, picture(height, width), scale=scale, seed=0, sampler=SAMPLER, tile_px=64, overlap_px=16)
    assert out.shape == (3, scale * height, scale * width) and out.dtype == np.uint8
    assert out.std() > 5


def test_one_tile_equals_untiled_sampling(policy: Policy) -> None:
    """An image no larger than the tile: the same bytes as encode, sample, decode without any tiling code."""
    lr = picture(12, 16)
    tiled = restore_image(policy, lr, scale=4, seed=5, sampler=SAMPLER, tile_px=128, overlap_px=48, colour="none")
    cond = policy.condition(lr, 4)
    noise = member_noise([5], policy.latent_shape(cond), torch.device("cpu"))
    with torch.no_grad():
        x0 = sample(
            lambda x, s: policy.prediction(x, torch.full((1,), s), [cond]),
            noise, flow_sigmas(3, shift=1.0, tokens=64), "euler",
        )  # fmt: skip
        plain = to_uint8(policy.decode(x0))[0].numpy()
    assert np.abs(tiled.astype(int) - plain).max() <= 1


def test_padding_is_cut_off_again(policy: Policy) -> None:
    """Restoring a 13 x 15 image is restoring its reflection to 16 x 16 and cropping."""
    lr = picture(13, 15)
    padded = np.pad(lr, ((0, 0), (0, 3), (0, 1)), mode="reflect")
    settings = {"scale": 4, "seed": 1, "sampler": SAMPLER, "colour": "none"}
    whole = restore_image(policy, padded, **settings)
    np.testing.assert_array_equal(restore_image(policy, lr, **settings), whole[:, :52, :60])
    np.testing.assert_array_equal(_pad(lr, 4), padded)


def test_seed_is_the_candidate(policy: Policy) -> None:
    lr = picture(20, 20)
    first, again, other = (restore_image(policy, lr, scale=4, seed=s, sampler=SAMPLER, tile_px=64) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


def test_tile_weights_are_a_partition() -> None:
    """A constant velocity stays constant, whatever the tiles are."""
    x = torch.randn(1, 2, 11, 7, generator=torch.Generator().manual_seed(1))
    for tile, overlap in ((4, 0), (4, 1), (5, 3), (8, 2), (3, 2), (99, 5)):
        constant = Analytic(lambda x, t, c: torch.full_like(x, 0.7))
        v = tiled_velocity(constant, condition(11, 7), tile=tile, overlap=overlap)(x, 0.5)
        torch.testing.assert_close(v, torch.full_like(x, 0.7), rtol=1e-6, atol=0)


def test_a_pointwise_velocity_does_not_see_the_tiles() -> None:
    """v = x + 2 t condition needs no neighbours, so tiling must give it exactly: both inputs are cut alike."""
    x = torch.randn(1, 2, 11, 13, generator=torch.Generator().manual_seed(1))
    cond = condition(11, 13)
    expected = x + 2 * 0.25 * cond.latents
    for tile, overlap in ((4, 1), (6, 3), (5, 0)):
        pointwise = Analytic(lambda x, t, c: x + 2 * t * c)
        got = tiled_velocity(pointwise, cond, tile=tile, overlap=overlap)(x, 0.25)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert all(shape[0] <= 8 and shape[2:] == (tile, tile) for shape in pointwise.calls)
        assert len(pointwise.calls) > 1


def test_overlaps_are_blended_by_a_gaussian() -> None:
    """Two tiles of 4 on a line of 6, velocities 0 and 1: in the overlap w2 / (w1 + w2), rising and symmetric."""
    index = iter((0.0, 1.0))
    steps = Analytic(lambda x, t, c: torch.stack([torch.full_like(part, next(index)) for part in x]))
    x = torch.zeros(1, 1, 4, 6)
    row = tiled_velocity(steps, condition(4, 6), tile=4, overlap=2)(x, 0.5)[0, 0, 0]
    w = torch.exp(-0.5 * ((torch.tensor([-0.375, -0.125, 0.125, 0.375])) / 0.3) ** 2)
    blend = [float(w[0] / (w[2] + w[0])), float(w[1] / (w[3] + w[1]))]
    assert row.tolist() == pytest.approx([0.0, 0.0, *blend, 1.0, 1.0], abs=1e-6)
    assert blend[0] + blend[1] == pytest.approx(1.0, abs=1e-6) and blend[0] < blend[1]
    torch.testing.assert_close(_gaussian(4), w)


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_tiles_cover_every_cell(overlap: int) -> None:
    """For all lengths up to 60: the first tile begins at 0, the last ends at the border, and none leaves a gap."""
    for length in range(1, 61):
        starts = _starts(length, 4, overlap)
        covered = {cell for start in starts for cell in range(start, min(start + 4, length))}
        assert covered == set(range(length))
        assert starts[0] == 0 and (length <= 4 or starts[-1] == length - 4)
        assert starts == sorted(set(starts))


def test_a_condition_crops_on_the_grid() -> None:
    """Cells of rows 1 to 2 and columns 2 to 4 of a 4 x 6 grid; the prompt is the whole image's."""
    text = torch.zeros(1, 2, 3)
    part = LatentCondition(torch.arange(24).float().view(1, 1, 4, 6), text).crop(1, 2, 2, 3)
    assert part.latents.flatten().tolist() == [8, 9, 10, 14, 15, 16]
    assert part.latents.shape == (1, 1, 2, 3) and part.text is text


def test_wrong_settings_are_refused_by_name(policy: Policy) -> None:
    lr = picture(8, 8)
    with pytest.raises(ValueError, match=r"colour: expected one of \['adain', 'none', 'wavelet'\], got 'lab'"):
        restore_image(policy, lr, scale=4, seed=0, sampler=SAMPLER, colour="lab")
    with pytest.raises(ValueError, match="0 <= overlap < tile, got overlap 4 and tile 4 tokens"):
        restore_image(policy, lr, scale=4, seed=0, sampler=SAMPLER, tile_px=64, overlap_px=64)


@pytest.mark.parametrize("colour", ["wavelet", "adain"])
def test_colour_comes_from_the_lr_image(policy: Policy, colour: str) -> None:
    """A reddish LR image: the aligned result has its channel means to 4 grey levels, the raw random model does not."""
    lr = picture(16, 16) // 4
    lr[0] += 130
    means = lr.reshape(3, -1).mean(axis=1)
    aligned = restore_image(policy, lr, scale=4, seed=0, sampler=SAMPLER, colour=colour)
    raw = restore_image(policy, lr, scale=4, seed=0, sampler=SAMPLER, colour="none")
    assert np.abs(aligned.reshape(3, -1).mean(axis=1) - means).max() < 4
    assert np.abs(raw.reshape(3, -1).mean(axis=1) - means).max() > 20


@torch.no_grad()
def test_a_one_step_policy_is_tiled_in_its_one_prediction(tiny_sd21_folder: Path) -> None:
    """One tile: encode, noise, generate, decode without tiling code. Two constant tiles: the same constant."""
    policy, sampler = loaded(type="naosd", path=str(tiny_sd21_folder)), OneStepSection()
    assert isinstance(policy, OneStepPolicy)
    lr = picture(12, 16)
    whole = restore_image(policy, lr, scale=4, seed=5, sampler=sampler, tile_px=64, overlap_px=16, colour="none")
    cond = policy.condition(lr, 4)
    noise = member_noise([5], policy.latent_shape(cond), torch.device("cpu"))
    t = torch.full((1,), 250.0)
    z_t = policy.noised(cond.latents, noise, t)
    expected = to_uint8(policy.decode(policy.clean(z_t, policy.prediction(z_t, t, [cond]), t))[0]).numpy()
    assert np.abs(whole.astype(int) - expected).max() <= 1
    odd = restore_image(policy, picture(13, 21), scale=4, seed=0, sampler=sampler, tile_px=32, overlap_px=8)
    assert odd.shape == (3, 52, 84)
    ones = tiled(lambda x, c: torch.ones_like(x), torch.zeros(1, 4, 9, 11), condition(9, 11, 4), tile=4, overlap=2)
    torch.testing.assert_close(ones, torch.ones(1, 4, 9, 11))


def test_the_noise_schedule_is_a_tiles(tiny_flux2_folder: Path) -> None:
    """FLUX.2's shift grows with the tokens: of a 12 x 12 grid in tiles of 4 they are 16, of a 3 x 3 grid they are 9."""
    policy = loaded(path=str(tiny_flux2_folder))
    view = tiled_policy(policy, tile=4, overlap=1)
    assert policy.levels(5, condition(12, 12)).tolist() != view.levels(5, condition(12, 12)).tolist()
    assert view.levels(5, condition(12, 12)).tolist() == policy.levels(5, condition(4, 4)).tolist()
    assert view.levels(5, condition(3, 3)).tolist() == policy.levels(5, condition(3, 3)).tolist()
