"""The start of the small VAE: an 8x average and its enlargement, of any image, and every weight can still learn."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from learner.pretraining.near_identity import start_near_identity
from rl.data.photos import load_photos
from rl.policies.base import from_uint8


def small_vae(groups: int = 1) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64), latent_channels=16, layers_per_block=1, norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["skimage:astronaut", "skimage:coffee", "plain"])
def test_it_starts_as_the_average_of_8_by_8_pixels(name: str) -> None:
    """Within 0.02 of [-1, 1], mean colour included: also where an image is one colour, whose mean and contrast a plain
    GroupNorm would remove."""
    x = torch.tensor([0.7, -0.3, 0.1]).view(1, 3, 1, 1).expand(1, 3, 64, 64).contiguous()
    if name != "plain":
        x = from_uint8(torch.tensor(load_photos([name])[name][64:192, 64:192].transpose(2, 0, 1))[None])
    average = nn.functional.avg_pool2d(x, 8)
    vae = small_vae()
    start_near_identity(vae)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mode()).sample
    assert (posterior.mode()[:, :3] - average).abs().mean() < 0.02
    assert (y - nn.functional.interpolate(average, scale_factor=8.0)).abs().mean() < 0.02
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.std, 0.0498), atol=1e-3, rtol=0)


def test_details_are_haars() -> None:
    """Latents 3 to 5 are each colour's difference of left and right halves of its 8x8 pixels, over 2."""
    photo = load_photos(["skimage:astronaut"])["skimage:astronaut"]
    x = from_uint8(torch.tensor(photo[64:192, 64:192].transpose(2, 0, 1))[None])
    halves = nn.functional.avg_pool2d(x, (8, 4)).unflatten(3, (-1, 2))
    vae = small_vae()
    start_near_identity(vae)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode()
    expected = (halves[..., 0] - halves[..., 1]) / 2
    assert torch.corrcoef(torch.stack([z[:, 3:6].flatten(), expected.flatten()]))[0, 1] > 0.999
    assert (z[:, 3:6] - expected).abs().mean() < 0.005


def test_two_steps_move_every_weight() -> None:
    vae = small_vae()
    start_near_identity(vae)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for _ in range(2):
        optimizer.zero_grad()
        (vae.decode(vae.encode(x).latent_dist.sample()).sample - x).square().mean().backward()
        optimizer.step()
    still = [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    # a bias of attention's keys shifts every score alike, so softmax removes it
    assert all("to_k.bias" in name for name in still), still


def test_several_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="expected norm_num_groups 1, because one channel is constant, got 8"):
        start_near_identity(small_vae(groups=8))
