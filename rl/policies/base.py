"""What the system needs of a generator; one file or folder per backbone implements it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from rl.types import U8


@dataclass(frozen=True, eq=False)
class Condition:
    """What the generator knows of one LR image; made once per group and expanded over its members."""

    latents: Tensor
    """`[1, C, h, w]` clean latents of the enlarged LR image, on the grid of the output."""
    text: Tensor | None = None
    """`[1, L, D]` prompt embedding; None where the policy has one for all images."""


class Generator(Protocol):
    """A conditional generator with LoRA adapters on one frozen base; what every kind of it has."""

    size_multiple: int
    """Output sides must be divisible by this."""
    backbone: nn.Module
    """The module that carries the adapters and that the learner trains."""

    def encode(self, lr: U8, scale: int, prompt: str = "") -> Condition:
        """LR `[3, h, w]` uint8 -> condition of the `scale` times larger output; a prompt is refused by name where
        the policy has one cached embedding for all images."""

    def latent_shape(self, condition: Condition) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""

    def decode(self, latents: Tensor) -> Tensor:
        """x0 `[B, C, h, w]` -> RGB `[B, 3, H, W]` in [-1, 1], not clamped."""

    def encode_hr(self, hr: U8) -> Tensor:
        """HR `[B, 3, H, W]` uint8 -> x0 `[B, C, h, w]`, the supervised target."""


@runtime_checkable
class FlowPolicy(Generator, Protocol):
    """A multi-step flow: velocity prediction, sampled by an ODE or SDE over a grid of noise levels."""

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """v = eps - x0 at x_t `[B, C, h, w]` and t `[B]` in [0, 1]; one condition per run of B / len members."""


@runtime_checkable
class OneStepPolicy(Generator, Protocol):
    """One model call makes the image from the noised LR latents: epsilon prediction of a DDPM backbone."""

    t_add: int
    """Noise level at which the LR latents are noised, in DDPM timesteps."""
    t_diff: int
    """Timestep at which the backbone is called."""

    def noised(self, z: Tensor, eps: Tensor) -> Tensor:
        """z~ = sqrt(abar_t_add) z + sqrt(1 - abar_t_add) eps, `[B, C, h, w]`."""

    def epsilon(self, z_t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Predicted noise `[B, C, h, w]` at t_diff; one condition per run of B / len members."""

    def clean(self, z_t: Tensor, e: Tensor) -> Tensor:
        """x0 `[B, C, h, w]` from z~ and the predicted noise."""

    def generate(self, eps: Tensor, conditions: Sequence[Condition], t_add: Sequence[int] | None = None) -> Tensor:
        """x0 `[B, C, h, w]` from noise, one model call; `t_add` holds each member's own noise level."""


Policy: TypeAlias = FlowPolicy | OneStepPolicy


def member_noise(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Standard normal `[G, C, h, w]`, each member from its own CPU generator, so equal on every device and worker."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(device)


def to_uint8(images: Tensor) -> Tensor:
    """RGB in [-1, 1] -> uint8 by rounding, clamped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 -> float32 RGB in [-1, 1]."""
    return images.float() / 127.5 - 1.0
