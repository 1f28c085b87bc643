"""The interface of a generator. A policy extends `FlowPolicy` or `OneStepPolicy` and contains everything specific to
its model.

An objective asks for a noised state, a prediction and a target, and is independent of the model:

            noised state                                 target      clean, from a prediction p
    flow    x_t = (1 - t) x0 + t eps                     eps - x0    x_t - t p                               t in [0, 1]
    DDPM    x_t = sqrt(abar) x0 + sqrt(1 - abar) eps     eps         (x_t - sqrt(1 - abar) p) / sqrt(abar)   timesteps t

Shapes: latents `[B, C, h, w]`, levels t `[B]`, one condition per run of B / len(conditions) members.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from rl.config.policy import PolicySection
from rl.config.rollout import SamplerSection
from rl.flow.cells import WHOLE, Cells
from rl.flow.schedule import interpolated
from rl.flow.sde import SDEStep
from rl.flow.trajectory import draw, exact_attention, flow_trajectory, flow_transition, gaussian_trajectory, one_step
from rl.types import U8, Enlargement, SRTask, TrajectoryRecord


class Condition(Protocol):
    """A generator's conditioning on one LR image; made once per group and repeated over its members."""

    def crop(self, y: int, x: int, height: int, width: int) -> Self:
        """The condition of one tile of the latent grid, in cells."""
        ...


@dataclass(frozen=True, eq=False)
class LatentCondition:
    """The enlarged LR image as latents on the output's grid, and a prompt."""

    latents: Tensor
    """`[1, C, h, w]`"""
    text: Tensor | None = None
    """`[1, L, D]` prompt embedding; None where the policy has one for all images."""

    def crop(self, y: int, x: int, height: int, width: int) -> "LatentCondition":
        return LatentCondition(self.latents[:, :, y : y + height, x : x + width], self.text)


class Policy(ABC):
    """A conditional generator with LoRA adapters on a frozen base."""

    section: PolicySection
    modules: Mapping[str, nn.Module]
    """Component of the pipeline (the prefix of the adapter's tensor names) -> module that carries adapters."""
    device: torch.device

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, section: Any) -> "Policy":
        """Load the weights of a local folder."""

    @abstractmethod
    def condition(self, lr: U8, scale: int, prompt: str = "", *, enlargement: Enlargement = "bicubic") -> Any:
        """LR `[3, h, w]` uint8 -> condition for the `scale` times larger output. Raises `InputError` for a prompt where
        the policy has one cached embedding for all images."""

    def condition_of(self, task: SRTask) -> Any:
        """The condition for a task of the run's stream."""
        return self.condition(task.lr, task.scale, task.prompt, enlargement=task.enlargement)

    @abstractmethod
    def latent_shape(self, condition: Any) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """x0 -> RGB `[B, 3, H, W]` in [-1, 1], not clamped."""

    @abstractmethod
    def encode_hr(self, hr: U8) -> Tensor:
        """HR `[B, 3, H, W]` uint8 -> x0, the supervised target."""

    @abstractmethod
    def prediction(self, x_t: Tensor, t: Tensor, conditions: Sequence[Any]) -> Tensor:
        """What the backbone predicts at x_t and t, without guidance."""

    def guided(self, x_t: Tensor, t: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The prediction that sampling uses; it differs where the policy has classifier-free guidance."""
        return self.prediction(x_t, t, conditions)

    @abstractmethod
    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noised state x_t."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The perfect prediction at x_t."""

    @abstractmethod
    def clean(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """x0 from a noised state and a prediction."""

    @abstractmethod
    def levels(self, steps: int, condition: Any) -> Tensor:
        """The noise levels of a sampling run, `[steps + 1]`; the last is that of the clean image."""

    @abstractmethod
    def random_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """`[count]` levels to train a prediction at where no sampler's grid gives them."""

    @abstractmethod
    def sample(
        self, noise: Tensor, conditions: Sequence[Any], sampler: Any, levels: Sequence[float] | None = None
    ) -> Tensor:
        """Noise -> x0. `levels` holds each member's own level where the sampler varies them."""

    @abstractmethod
    def trajectory(
        self, noise: Tensor, condition: Any, sampler: Any, seeds: Sequence[int], iteration_seed: tuple[int, int],
        *, keep_mean: bool, cells: Cells = WHOLE,
    ) -> tuple[Tensor, TrajectoryRecord]:  # fmt: skip
        """x0 and the record of the trained stochastic steps, with likelihoods of `cells`. A member's noise derives from
        its seed, the choice of steps from `iteration_seed` (run's seed, iteration)."""

    @abstractmethod
    def transition(
        self, x: Tensor, x_next: Tensor, condition: Any, sampler: Any, k: int, cells: Cells = WHOLE
    ) -> SDEStep:
        """The likelihood of the recorded step `k` from `x` to `x_next`, computed as `trajectory` did."""

    def probe(self, condition: Any, noise: Tensor) -> Tensor:
        """The prediction of one call at the first level; canaries compare it."""
        t = self.levels(1, condition)[:1].to(noise.device).expand(len(noise))
        return self.prediction(self.noised(noise, noise, t), t, [condition])


class FlowPolicy(Policy):
    """A multi-step flow: velocity prediction, sampled by an ODE or SDE over a grid of noise levels."""

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return interpolated(x0, eps, t)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - x0

    def clean(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return x_t - t.view(-1, 1, 1, 1) * prediction

    def random_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform in [0, 1), as flow matching is trained."""
        return torch.rand(count, generator=generator)

    def velocity(self, conditions: Sequence[Any]) -> Any:
        """v(x, s) of one noise level for the whole batch, float32."""

        def velocity(x: Tensor, s: float) -> Tensor:
            return self.guided(x, x.new_full((len(x),), s), conditions).float()

        return velocity

    def sample(
        self, noise: Tensor, conditions: Sequence[Any], sampler: Any, levels: Sequence[float] | None = None
    ) -> Tensor:
        return draw(self.velocity(conditions), noise, self.levels(sampler.steps, conditions[0]), sampler)

    def trajectory(
        self, noise: Tensor, condition: Any, sampler: Any, seeds: Sequence[int], iteration_seed: tuple[int, int],
        *, keep_mean: bool, cells: Cells = WHOLE,
    ) -> tuple[Tensor, TrajectoryRecord]:  # fmt: skip
        sigmas = self.levels(sampler.steps, condition)
        velocity = self.velocity([condition])
        return flow_trajectory(
            velocity, noise, sigmas, sampler, seeds, iteration_seed, keep_mean=keep_mean, cells=cells
        )

    def transition(
        self, x: Tensor, x_next: Tensor, condition: Any, sampler: Any, k: int, cells: Cells = WHOLE
    ) -> SDEStep:
        sigmas = self.levels(sampler.steps, condition)
        return flow_transition(self.velocity([condition]), x, x_next, sigmas, sampler.sde, k, cells)


class OneStepPolicy(Policy):
    """One model call produces the image from the noised LR latents: a DDPM backbone called at a fixed timestep."""

    t_add: int
    """Timestep at which the LR latents are noised."""

    @abstractmethod
    def start(self, conditions: Sequence[Any], members: int) -> Tensor:
        """The LR latents `[members, C, h, w]` to be noised."""

    def levels(self, steps: int, condition: Any) -> Tensor:
        """[t_add, 0], whatever `steps` is."""
        return torch.tensor([float(self.t_add), 0.0])

    def random_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """t_add for every member: the only level that the policy is called at."""
        return torch.full((count,), float(self.t_add))

    def sample(
        self, noise: Tensor, conditions: Sequence[Any], sampler: SamplerSection, levels: Sequence[float] | None = None
    ) -> Tensor:
        t = torch.tensor(levels or [self.t_add] * len(noise), dtype=torch.float32, device=noise.device)
        z_t = self.noised(self.start(conditions, len(noise)), noise, t)
        return self.clean(z_t, self.guided(z_t, t, conditions), t)

    def trajectory(
        self, noise: Tensor, condition: Any, sampler: Any, seeds: Sequence[int], iteration_seed: tuple[int, int],
        *, keep_mean: bool, cells: Cells = WHOLE,
    ) -> tuple[Tensor, TrajectoryRecord]:  # fmt: skip
        t = noise.new_full((len(noise),), float(self.t_add))
        z_t = self.noised(self.start([condition], len(noise)), noise, t)
        return gaussian_trajectory(
            lambda: self._image(z_t, t, condition), z_t, sampler.std, seeds, keep_mean=keep_mean, cells=cells
        )

    def transition(
        self, x: Tensor, x_next: Tensor, condition: Any, sampler: Any, k: int, cells: Cells = WHOLE
    ) -> SDEStep:
        t = x.new_full((len(x),), float(self.t_add))
        with exact_attention(x.device):
            return one_step(lambda: self._image(x, t, condition), sampler.std, x_next=x_next, cells=cells)

    def _image(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return self.clean(z_t, self.guided(z_t, t, [condition]).float(), t)


def repeated(parts: Sequence[Tensor], size: int) -> Tensor:
    """One row per condition `[1, ...]`, each repeated for its members."""
    if not parts or size % len(parts):
        raise ValueError(f"a batch of {size} is not a multiple of {len(parts)} conditions")
    return torch.cat(list(parts)).repeat_interleave(size // len(parts), dim=0)


def enlarged(lr: U8, scale: int, multiple: int, enlargement: Enlargement) -> Tensor:
    """LR `[3, h, w]` uint8 -> RGB `[1, 3, scale h, scale w]` in [-1, 1].

    Raises:
        ValueError: a side of the output is not divisible by `multiple`.
    """
    size = (lr.shape[1] * scale, lr.shape[2] * scale)
    if size[0] % multiple or size[1] % multiple:
        raise ValueError(f"output sides must be divisible by {multiple}, got {size[1]}x{size[0]}")
    pixels = from_uint8(torch.from_numpy(np.array(lr))[None])
    return nn.functional.interpolate(pixels, size=size, mode=enlargement).clamp(-1, 1)


def member_noise(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Standard normal `[G, C, h, w]`, each member from its own CPU generator: the same on every device and worker."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(device)


def to_uint8(images: Tensor) -> Tensor:
    """RGB in [-1, 1] -> uint8 by rounding, clamped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 -> float32 RGB in [-1, 1]."""
    return images.float() / 127.5 - 1.0
