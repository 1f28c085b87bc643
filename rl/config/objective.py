"""Objectives and how rewards become advantages."""

from typing import Literal

from pydantic import Field

from rl.config.base import Section


class OldDecay(Section):
    """theta_old <- eta theta_old + (1 - eta) theta after each batch, s = optimiser steps so far.

    `none`: eta = 0. `ramp`: eta = min(0.001 s, 0.5). `delayed`: eta = 0 until s = 75, then
    min(0.0075 (s - 75), 0.999). The three published schedules (DiffusionNFT code, decay types 0, 1, 2).
    """

    schedule: Literal["none", "ramp", "delayed"] = "ramp"


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


class AdvantageConfig(Section):
    """From the `[G, R]` scores of each group to one number per member."""

    aggregation: Literal["decoupled", "scalarised"] = "decoupled"
    """`decoupled` (LucidNFT): per-reward group z-score, weighted sum, batch z-score. `scalarised`: weighted sum of
    raw rewards, centred in the group, divided by the batch's standard deviation (DiffusionNFT)."""
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
