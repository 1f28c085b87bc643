"""DeepSpeed around the trained module; the only file that imports deepspeed."""

import logging
import os
from typing import Any

import torch
from torch import nn

from learner.ds_config import ds_config
from rl.config.objective import OptimizerConfig
from rl.config.run import RunConfig


def build_engine(module: nn.Module, parameters: list[nn.Parameter], config: RunConfig) -> Any:
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


def build_optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the adapter."""
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
