"""Keeps non-finite losses and gradients out of every adapter version: checked before each optimiser step, on every
rank."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class NotFinite(RuntimeError):
    """Training diverged; the adapters hold the last good step.

    Attributes:
        ordinals: the groups with non-finite micro-batches.
    """

    def __init__(self, ordinals: tuple[int, ...], reason: str) -> None:
        super().__init__(ordinals, reason)
        self.ordinals, self.reason = ordinals, reason

    def __str__(self) -> str:
        return (
            f"{self.reason} on groups {list(self.ordinals)}; no optimiser step was taken. Look at their images and "
            "scores in samples/ and metrics.jsonl, lower learner.optimizer.lr, or raise advantage.std_floor"
        )


class FiniteGuard:
    """Collects the results of one update's micro-batches. A rank that raised alone would leave the others waiting in
    the step's collectives, hence one flag over all ranks per step."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._losses: list[tuple[int, Tensor]] = []
        self._bad_gradients: list[Tensor] = []
        for parameter in parameters:
            parameter.register_hook(self._look)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def _look(self, gradient: Tensor) -> None:
        self._bad_gradients.append(~torch.isfinite(gradient).all())

    def saw(self, ordinal: int, loss: Tensor) -> None:
        """Record the backward pass of a micro-batch of group `ordinal`."""
        bad = torch.stack(self._bad_gradients).any() if self._bad_gradients else torch.zeros((), dtype=torch.bool)
        self._bad_gradients.clear()
        self._losses.append((ordinal, torch.where(bad.to(loss.device), torch.inf, loss.float().abs())))

    def check(self) -> tuple[int, ...]:
        """Raise `NotFinite` on every rank if any rank saw such a value; returns the ordinals of the update."""
        seen, self._losses = self._losses, []
        ordinals = tuple(sorted({ordinal for ordinal, value in seen if not torch.isfinite(value)}))
        flag = torch.tensor(bool(ordinals), dtype=torch.int32, device=seen[0][1].device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        if flag:
            found: list[tuple[int, ...]] = [()] * dist.get_world_size()
            dist.all_gather_object(found, ordinals)
            ranks = [rank for rank, bad in enumerate(found) if bad]
            raise NotFinite(
                tuple(sorted({ordinal for bad in found for ordinal in bad})),
                f"a loss or gradient of learner rank(s) {ranks} is not finite",
            )
        return tuple(dict.fromkeys(ordinal for ordinal, _ in seen))
