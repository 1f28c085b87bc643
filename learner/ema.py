"""The exponential moving average of an adapter, used by evaluation and export (from DiffusionNFT's code)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def ema_decay(maximum: float, s: int) -> float:
    """Decay of update `s`, counted from 1: min((1 + s) / (10 + s), maximum)."""
    return min((1 + s) / (10 + s), maximum)


class Ema:
    """ema <- d ema + (1 - d) theta after every optimiser step."""

    def __init__(self, parameters: Mapping[str, Tensor], maximum: float) -> None:
        self.tensors = {name: value.detach().clone() for name, value in parameters.items()}
        self._maximum = maximum

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], s: int) -> None:
        decay = ema_decay(self._maximum, s)
        for name, value in parameters.items():
            self.tensors[name].lerp_(value, 1 - decay)
