"""The small VAE: its latents, its bounded window, and that it stands in for AutoencoderKLFlux2."""

from pathlib import Path

import pytest
import torch

from rl.policies.flux2sr.mini_vae import MiniVAE, ResBlock


@pytest.fixture(scope="module")
def vae() -> MiniVAE:
    torch.manual_seed(0)
    vae = MiniVAE(4, (8, 8), (1, 1), (8, 8), (2, 1)).eval()
    for module in vae.modules():
        if isinstance(module, ResBlock):
            torch.nn.init.normal_(module.conv2.weight, std=0.1)
    return vae


def test_a_fresh_block_is_the_identity_up_to_its_bias() -> None:
    block = ResBlock(4)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x + block.conv2.bias[None, :, None, None].expand_as(x))


@torch.no_grad()
def test_eight_times_smaller_and_back(vae: MiniVAE) -> None:
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    z = vae.encode(x).latent_dist.mode()
    assert z.shape == (2, 4, 4, 6)
    assert vae.decode(z).sample.shape == x.shape
    torch.testing.assert_close(vae.encode(x[1:]).latent_dist.mode(), z[1:], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_latent_reaches_a_bounded_window_only(vae: MiniVAE) -> None:
    """Changing one latent cell of 33 x 33 leaves all pixels unchanged that are more than 8 cells away, and changes its
    own: tiles of a large image agree where they overlap."""
    z = torch.randn(1, 4, 33, 33, generator=torch.Generator().manual_seed(1))
    moved = z.clone()
    moved[:, :, 16, 16] += 1.0
    changed = (vae.decode(z).sample - vae.decode(moved).sample).abs().amax(dim=(0, 1)) > 0
    rows = changed.any(dim=1).nonzero().flatten()
    assert changed[16 * 8 : 17 * 8, 16 * 8 : 17 * 8].all()
    assert rows.min() >= (16 - 8) * 8 and rows.max() < (17 + 8) * 8


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(vae: MiniVAE, tmp_path: Path) -> None:
    """Weights, sizes and the batch-norm statistics survive diffusers' save_pretrained."""
    vae.bn.running_mean.copy_(torch.arange(16).float())
    vae.save_pretrained(tmp_path)
    loaded = MiniVAE.from_pretrained(tmp_path)
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.decode(z).sample, vae.decode(z).sample)
    assert torch.equal(loaded.bn.running_mean, vae.bn.running_mean)
    assert dict(loaded.config)["decoder_depths"] in ([2, 1], (2, 1))
