"""An initialisation that makes an untrained AutoencoderKL an 8x average followed by its enlargement.

    GroupNorm   over one group with a constant channel K beside C - 1 channels x,  K^2 >> sum x^2:
                mean = K / C,  std = K sqrt(C - 1) / C  for any image; weight and bias undo both, GN(x) = x
    SiLU        silu(x) - silu(-x) = x: what must pass one goes through it twice, with both signs
    residuals   their last layer is 0

Without the constant channel the norms remove every image's mean colour and contrast, and a small VAE needs thousands of
steps to carry these around the norms (tests/benchmarks/RESULTS.md, 10). Downsamplers start as 2x2 averages plus the
colours' Haar details, upsamplers as copies. Everything is trained from there.
"""

from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

K = 8.0
"""The constant; image values are in [-1, 1]. A larger K is closer to the identity but makes bias steps larger."""
RGB = 3
HAAR = torch.tensor([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 4
DETAILS = RGB * len(HAAR)


@torch.no_grad()
def start_near_identity(vae: AutoencoderKL) -> None:
    """Set the weights in place. The last channel of every layer is the constant channel."""
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.GroupNorm):
            _undo(layer)
        elif name.endswith(("conv2", "to_out.0")):
            _zero(layer)
        elif name.endswith("conv_shortcut"):
            _widen(layer)
        elif name.endswith("upsamplers.0.conv"):
            _copy(layer, [(i, i, 1.0) for i in range(layer.out_channels)])
    _start_encoder(vae)
    _start_decoder(vae)


def _start_encoder(vae: AutoencoderKL) -> None:
    encoder, latents = vae.encoder, vae.config.latent_channels
    encoder.conv_in.weight[:RGB].zero_()
    encoder.conv_in.bias[:RGB] = 0
    for colour in range(RGB):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
    _emit_constant(encoder.conv_in)
    down = [block.downsamplers[0].conv for block in encoder.down_blocks if block.downsamplers]
    for level, conv in enumerate(down):
        _halve(conv, RGB + DETAILS * level)
    first = RGB + DETAILS * (len(down) - 1)
    passed = [*range(RGB), *range(first, first + DETAILS)][:latents]
    negative = first + DETAILS
    down[-1].weight[negative : negative + len(passed)] = -down[-1].weight[passed]
    outer = encoder.conv_out.weight.clone()
    pairs = [(k, source, negative + k) for k, source in enumerate(passed)]
    _copy(encoder.conv_out, [row for k, plus, minus in pairs for row in ((k, plus, 1.0), (k, minus, -1.0))])
    encoder.conv_out.weight[len(passed) : latents] = outer[len(passed) : latents]
    # the posterior's standard deviation starts at exp(-3), far below the image's contrast
    encoder.conv_out.bias[latents:] = -6
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _copy(conv, [(i, i, 1.0) for i in range(conv.out_channels)])


def _start_decoder(vae: AutoencoderKL) -> None:
    decoder = vae.decoder
    _copy(decoder.conv_in, [(i, i, 1.0) for i in range(vae.config.latent_channels)])
    _emit_constant(decoder.conv_in)
    shortcuts = [r.conv_shortcut for block in decoder.up_blocks for r in block.resnets if r.conv_shortcut is not None]
    for colour in range(RGB):
        shortcuts[-1].weight[RGB + colour] = -shortcuts[-1].weight[colour]
    plus = [(colour, colour, 1.0) for colour in range(RGB)]
    _copy(decoder.conv_out, [*plus, *((colour, RGB + colour, -1.0) for colour in range(RGB))])


def _undo(norm: nn.GroupNorm) -> None:
    if norm.num_groups != 1:
        raise ValueError(f"expected norm_num_groups 1, because one channel is constant, got {norm.num_groups}")
    channels = norm.num_channels
    norm.weight.fill_(K * (channels - 1) ** 0.5 / channels)
    norm.bias.fill_(K / channels)
    norm.weight[-1] = norm.bias[-1] = 0


def _halve(conv: nn.Conv2d, used: int) -> None:
    """Every channel's 2x2 average; the colours' Haar details from channel `used` on."""
    # the stride-2 window starts at the pixel itself: diffusers pads right and bottom only
    _zero(conv)
    conv.weight[:, :, :2, :2] = torch.eye(conv.out_channels)[..., None, None] / 4
    for band, filter_ in enumerate(HAAR):
        for colour in range(RGB):
            target = conv.weight[used + RGB * band + colour]
            target.zero_()
            target[colour, :2, :2] = filter_


def _widen(shortcut: nn.Conv2d) -> None:
    """Channels keep their place; the constant one stays last."""
    kept = min(shortcut.in_channels, shortcut.out_channels) - 1
    last = (shortcut.out_channels - 1, shortcut.in_channels - 1, 1.0)
    _copy(shortcut, [*((i, i, 1.0) for i in range(kept)), last])


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _emit_constant(conv: nn.Conv2d) -> None:
    conv.weight[-1].zero_()
    bias: Tensor = conv.get_parameter("bias")
    bias[-1] = K


def _copy(conv: nn.Conv2d, rows: Iterable[tuple[int, int, float]]) -> None:
    """out = sum of weight * in over the rows (out, in, weight)."""
    _zero(conv)
    centre = conv.kernel_size[0] // 2
    weight: Tensor = conv.weight
    for out, source, value in rows:
        weight[out, source, centre, centre] = value
