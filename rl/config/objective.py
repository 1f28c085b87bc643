"""Objectives and how rewards become advantages."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from rl.config.base import Section
from rl.config.policy import SamplerConfig


class OldDecay(Section):
    """theta_old <- eta theta_old + (1 - eta) theta after each batch, s = optimiser steps so far.

    `none`: eta = 0. `ramp`: eta = min(0.001 s, 0.5). `delayed`: eta = 0 until s = 75, then
    min(0.0075 (s - 75), 0.999). The three published schedules (DiffusionNFT code, decay types 0, 1, 2).
    """

    schedule: Literal["none", "ramp", "delayed"] = "ramp"


SampledWith = Literal["policy", "reference", "trajectory"]
"""How a training group is sampled: with the newest adapter, with adapters off, or stochastically with the newest
adapter and its steps recorded."""


class NFTConfig(Section):
    """DiffusionNFT (arXiv 2509.16117) as in its code; LucidNFT publishes none of these values."""

    type: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    """Mixing of old and new velocity. 1 is stable, 0.1 (multi-reward) is faster."""
    adv_clip_max: float = Field(5.0, gt=0)
    kl_weight: float = Field(1e-4, ge=0)
    """Weight of mean (v_theta - v_ref)^2; at 0 the reference forward is skipped. Not `beta`."""
    old_decay: OldDecay = OldDecay()
    timestep_fraction: float = Field(0.99, gt=0, le=1)
    """Share of the sampler's grid that each member is trained on: floor(steps * fraction) random points."""
    allow_one_step: bool = False
    """DiffusionNFT's authors call one-step generators unsupported; set true to try anyway."""

    @property
    def sampled_with(self) -> SampledWith:
        return "policy"

    def micro_batches_per_group(self, sampler: SamplerConfig) -> int:
        """floor(steps * fraction), DiffusionNFT's number of trained grid points of a member."""
        return int(sampler.steps * self.timestep_fraction)


SampleFrom = Literal["reference", "policy"]


class PreferenceConfig(Section):
    """What GDPO and Diffusion-DPO share."""

    sample_from: SampleFrom = "reference"
    """`reference`: groups come from the frozen base, as GDPO-SR publishes it and as offline pairs amount to. `policy`:
    from the newest adapter."""
    draws: int = Field(1, ge=1)
    """Noise draws per group, each a micro-batch."""

    @property
    def sampled_with(self) -> SampledWith:
        return self.sample_from

    def micro_batches_per_group(self, sampler: SamplerConfig) -> int:
        """One per noise draw, whatever the sampler's steps are."""
        return self.draws


class GDPOConfig(PreferenceConfig):
    """GDPO-SR (arXiv 2603.16769), its published values."""

    type: Literal["gdpo"] = "gdpo"
    omega: float = Field(5000.0, gt=0)
    """Strength of the preference; the published loss has it with a factor 1/2, on the mean squared error."""
    noise: Literal["member", "group"] = "member"
    """`member`: each has its own, as published. `group`: all share one, as Diffusion-DPO's pairs do (ours): what the
    noise alone adds to an error is then the same for every member, and the advantages, which sum to 0, cancel it."""


class DiffusionDPOConfig(PreferenceConfig):
    """Diffusion-DPO (arXiv 2311.12908) on the best and worst member of each fresh group."""

    type: Literal["diffusion_dpo"] = "diffusion_dpo"
    beta: float = Field(5000.0, gt=0)


class GRPOConfig(Section):
    """Flow-GRPO (arXiv 2505.05470), DanceGRPO (2505.07818), MixGRPO (2507.21802), GRPO-Guard (2510.22319); the table of
    published values is in `rl.objectives.grpo`, the steps and windows are `rollout.sampler.sde`."""

    type: Literal["grpo"] = "grpo"
    clip: float = Field(1e-4, gt=0, lt=1)
    """Range of the ratio, whose log-probability is a mean over the latent: 1e-4; Fast 1e-5; Guard 2e-6 to 4e-6."""
    adv_clip_max: float = Field(5.0, gt=0)
    kl_weight: float = Field(0.04, ge=0)
    """Weight of mean (mu - mu_ref)^2 / (2 sigma_t^2); at 0 the reference forward is skipped. DanceGRPO and Guard: 0."""
    guard: bool = False
    """GRPO-Guard's normalised log-ratio; refused for step `cps`, which publishes no density."""
    weight_by_dt: bool = False
    """Multiply a step's loss by 1 / dt, GRPO-Guard's weight."""

    @property
    def sampled_with(self) -> SampledWith:
        return "trajectory"

    def micro_batches_per_group(self, sampler: SamplerConfig) -> int:
        """One per trained step of the trajectory."""
        return sampler.sde.trained_steps(sampler.steps)


def _known(value: Any) -> Any:
    """`nft` where there is no type; an unknown one is refused here, in words."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type", "nft")
    if kind not in OBJECTIVE_TYPES:
        raise ValueError(f"type must be one of {list(OBJECTIVE_TYPES)}, got {kind!r}")
    return {**value, "type": kind}


def _tag(value: Any) -> str:
    return f"<{value['type'] if isinstance(value, dict) else getattr(value, 'type', 'nft')}>"


ObjectiveConfig = Annotated[
    Annotated[NFTConfig, Tag("<nft>")]
    | Annotated[GDPOConfig, Tag("<gdpo>")]
    | Annotated[DiffusionDPOConfig, Tag("<diffusion_dpo>")]
    | Annotated[GRPOConfig, Tag("<grpo>")],
    Discriminator(_tag),
    BeforeValidator(_known),
]
OBJECTIVE_TYPES = ("nft", "gdpo", "diffusion_dpo", "grpo")


class AdvantageConfig(Section):
    """From the `[G, R]` scores of each group to one number per member."""

    aggregation: Literal["decoupled", "scalarised", "attribute_aware"] = "decoupled"
    """`decoupled` (LucidNFT): per-reward group z-score, weighted sum, batch z-score. `scalarised`: weighted sum of
    raw rewards, centred in the group, divided by the batch's standard deviation (DiffusionNFT). `attribute_aware`
    (GDPO-SR): in-group min-max, fidelity rewards weighted by the image's smooth share and perceptual ones by its
    detailed share, group z-score."""
    detail_share: float | None = Field(None, ge=0, le=1)
    """Read only by `attribute_aware`. None: the HR image's own. 0: fidelity only, 1: perceptual only, 0.5: fixed."""
    std_floor: float = Field(1e-3, ge=0)
    """A reward whose group standard deviation is under `std_floor * reward.scale` has no say in that group
    (advantage 0), so that float noise is not blown up to full weight. The value is ours."""
    eps: float = Field(1e-4, ge=0)


class OptimizerConfig(Section):
    """AdamW, DiffusionNFT's values."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)


class LearnerConfig(Section):
    """L DeepSpeed ranks that train the `policy` adapter."""

    ranks: int = Field(1, ge=1)
    cpus_per_rank: float = Field(1.0, gt=0)
    gpus_per_rank: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2] = 2
    """0, 1 and 2 compared in tests/benchmarks/RESULTS.md, 7: 2 is the fastest there and needs the least memory."""
    optimizer: OptimizerConfig = OptimizerConfig()
    updates_per_batch: int = Field(1, ge=1)
    """Optimiser steps per training batch; the (group, timestep) micro-batches are shared out among them."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """EMA of the policy adapter for evaluation and export, warm-up min((1 + s) / (10 + s), ema_decay)."""
    deadline_s: float = Field(1800.0, gt=0)
