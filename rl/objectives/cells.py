"""How a loss reads advantages: one number per member, or one per member and cell of the latent grid.

    [G]          an error is its mean over C, h, w, and the loss is the loss of that number
    [G, h, w]    an error is its mean over C and the positions of a cell; the loss of every cell, times the cell's share
                 of the positions, is summed

With equal advantages in all cells, a loss that is linear in the errors is the same number both ways.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rl.config.advantage import AdvantageSection


@dataclass(frozen=True)
class Cells:
    """Squares of `pool` x `pool` latent positions; None: the whole latent as one."""

    pool: int | None = None

    @staticmethod
    def of(advantage: AdvantageSection) -> "Cells":
        return Cells(None if advantage.spatial == "off" else advantage.pool)

    def matching(self, advantages: Tensor, latents: Tensor) -> "Cells":
        """The cells of advantages `[G]` or `[G, rows, columns]` on latents `[G, C, h, w]`.

        Raises:
            ValueError: the advantages lie on another grid.
        """
        if advantages.ndim == 1:
            return Cells()
        expected = tuple(-(-side // (self.pool or side)) for side in latents.shape[2:])
        if tuple(advantages.shape[1:]) != expected:
            raise ValueError(
                f"expected advantages on a grid of {expected} cells, advantage.pool {self.pool} on latents "
                f"{tuple(latents.shape)}, got {tuple(advantages.shape[1:])}; is the policy's cell_px right?"
            )
        return self

    def mean(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`[B, C, h, w]` -> `[B]` or `[B, rows, columns]`."""
        if self.pool is None:
            return x.mean(dim=tuple(range(1, x.ndim)), dtype=dtype)
        return avg_pool2d(x.mean(dim=1, dtype=dtype), self.pool, ceil_mode=True)

    def total(self, values: Tensor, latents: Tensor) -> Tensor:
        """Values `[B]` as they are, `[B, rows, columns]` averaged over the cells by their share of `latents`: `[B]`."""
        if self.pool is None:
            return values
        return (values * self.shares(latents)).sum(dim=(1, 2))

    def shares(self, latents: Tensor) -> Tensor:
        """`[rows, columns]`, each cell's share of the positions; sums to 1."""
        assert self.pool is not None
        rows, columns = (
            torch.tensor([min(self.pool, side - at) / side for at in range(0, side, self.pool)], device=latents.device)
            for side in latents.shape[2:]
        )
        return rows[:, None] * columns


WHOLE = Cells()
