"""The learner: ranks, optimiser, micro-batches."""

from typing import Annotated, Literal

from pydantic import Field

from rl.config.base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSection(Section):
    """AdamW, DiffusionNFT's values."""

    lr: float = Field(3e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)


class LearnerSection(Section):
    """L DeepSpeed ranks that train the `policy` adapter."""

    ranks: int = Field(1, ge=1)
    cpus_per_rank: float = Field(1.0, gt=0)
    gpus_per_rank: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2] = 2
    """tests/benchmarks/RESULTS.md, 7, compares 0, 1 and 2: 2 is the fastest there and needs the least memory."""
    optimizer: OptimizerSection = OptimizerSection()
    micro_batch: int | None = Field(None, ge=1)
    """Members (or pairs) per forward and backward pass; the gradient is the whole group's. None: as many as were
    sampled at once (`rollout.micro_batch`), by default the whole group."""
    updates_per_batch: int = Field(1, ge=1)
    """Optimiser steps per training batch; its micro-batches are divided among them (`objective.order`)."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """EMA of the policy adapter for evaluation and export, warm-up min((1 + s) / (10 + s), ema_decay)."""
    deadline_s: float = Field(1800.0, gt=0)
