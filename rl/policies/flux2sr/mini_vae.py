"""A small 8x VAE with the interface of diffusers' `AutoencoderKLFlux2`.

It exists so that the embedded preset needs no download and decodes a group of 12 images in about 0.1 s on two CPU
cores. Flux2SR uses the same interface on both classes: `encode().latent_dist.mode()`, `decode().sample`, and the
batch-norm statistics `bn` over 2x2-patchified latents. Left out: attention and normalisation layers, so that every
output pixel depends on a bounded window and tiles of a large image agree where they overlap.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the last convolution initialised to zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(nn.functional.silu(x))
        h = self.conv2(nn.functional.silu(h))
        return x + h


def _encoder(channels: tuple[int, int], depths: tuple[int, int], latent_channels: int) -> nn.Sequential:
    half, deep = channels
    return nn.Sequential(
        nn.PixelUnshuffle(4),
        nn.Conv2d(48, half, 3, padding=1),
        *(ResBlock(half) for _ in range(depths[0])),
        nn.Conv2d(half, deep, 3, stride=2, padding=1),
        *(ResBlock(deep) for _ in range(depths[1])),
        nn.SiLU(),
        nn.Conv2d(deep, 2 * latent_channels, 3, padding=1),
    )


def _decoder(channels: tuple[int, int], depths: tuple[int, int], latent_channels: int) -> nn.Sequential:
    half, deep = channels
    return nn.Sequential(
        nn.Conv2d(latent_channels, deep, 3, padding=1),
        *(ResBlock(deep) for _ in range(depths[1])),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(deep, half, 3, padding=1),
        *(ResBlock(half) for _ in range(depths[0])),
        nn.SiLU(),
        nn.Conv2d(half, 48, 3, padding=1),
        nn.PixelShuffle(4),
    )


def running_statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The VAE's running mean and variance of its latents; a norm without them cannot normalise one image."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("vae.bn: expected running statistics, got a norm with track_running_stats=False")
    return norm.running_mean, norm.running_var


class MiniVAE(ModelMixin, ConfigMixin):
    """RGB in [-1, 1] `[B, 3, H, W]` <-> latents `[B, latent_channels, H/8, W/8]`; H and W divisible by 16."""

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no types
    def __init__(
        self,
        latent_channels: int = 16,
        encoder_channels: tuple[int, int] = (64, 80),
        encoder_depths: tuple[int, int] = (1, 1),
        decoder_channels: tuple[int, int] = (64, 96),
        decoder_depths: tuple[int, int] = (3, 2),
        batch_norm_eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.encoder = _encoder(encoder_channels, encoder_depths, latent_channels)
        self.decoder = _decoder(decoder_channels, decoder_depths, latent_channels)
        self.bn = nn.BatchNorm2d(4 * latent_channels, eps=batch_norm_eps, affine=False)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        moments = self.encoder(x.contiguous(memory_format=torch.channels_last))
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(z.contiguous(memory_format=torch.channels_last)))
