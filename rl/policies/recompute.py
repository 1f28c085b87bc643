"""Gradient checkpointing (recomputing activations) that recomputes a block with the attention kernel of its forward."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

_ENABLED = {
    SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled,
    SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled,
    SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled,
    SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled,
}


def enable_recomputation(backbone: Any) -> None:
    """Recompute the activations of every block of a diffusers model in the backward pass.

    The backward pass recomputes a block outside the context that chose its attention kernel
    (`rl.flow.trajectory.exact_attention`); another kernel saves other tensors, which torch refuses.
    """
    backbone.enable_gradient_checkpointing(_checkpoint)


def _checkpoint(block: Callable[..., Any], *args: Any) -> Any:
    kernels = [kernel for kernel, enabled in _ENABLED.items() if enabled()]  # type: ignore[no-untyped-call]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), sdpa_kernel(kernels)

    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
