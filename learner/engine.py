"""Wraps the trained module in DeepSpeed; the only file that imports deepspeed."""

import logging
import os
from typing import Any

import torch
from torch import nn

from rl.config.learner import OptimizerSection
from rl.config.training import TrainingSection


def build_engine(module: nn.Module, parameters: list[nn.Parameter], config: TrainingSection) -> Any:
    """Join the process group named by RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and wrap `module`.

    gloo on the CPU, nccl on GPUs. The optimiser is torch's AdamW over `parameters`, in float32.
    """
    cuda = config.policy.device == "cuda"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    optimizer = build_optimizer(parameters, config.learner.optimizer)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, model_parameters=parameters, config=ds_config(config)
    )
    return engine


def ds_config(config: TrainingSection) -> dict[str, Any]:
    """DeepSpeed's configuration for one rank; its gradient accumulation counts our micro-batches."""
    learner = config.learner
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.micro_batches_per_update,
        "gradient_clipping": learner.optimizer.grad_clip,
        "zero_optimization": {"stage": learner.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def build_optimizer(parameters: list[nn.Parameter], config: OptimizerSection) -> torch.optim.AdamW:
    """AdamW over the adapter."""
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
