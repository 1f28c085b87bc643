"""Means over latents: one number per member, or one per member and cell of the latent grid.

    advantages [G]          an error or log-probability is its mean over C, h, w
    advantages [G, h, w]    it is its mean over C and the positions of a cell; a loss takes every cell by itself and
                            averages over the cells, each weighted with its share of the positions

With equal advantages in all cells, a loss that is linear in the errors is the same number both ways.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rl.config.advantage import AdvantageSection


@dataclass(frozen=True)
class Cells:
    """Squares of `pool` x `pool` latent positions, smaller at the right and bottom edge. The whole latent is one where
    `pool` is None or not smaller than its sides."""

    pool: int | None = None

    @staticmethod
    def of(advantage: AdvantageSection) -> "Cells":
        """The cells of a run's advantages."""
        return Cells(None if advantage.spatial == "off" else advantage.pool)

    def grid(self, latents: Tensor) -> tuple[int, ...]:
        """(rows, columns) over latents `[..., h, w]`; () for the whole latent."""
        if self.pool is None or self.pool >= max(latents.shape[-2:]):
            return ()
        return tuple(-(-side // self.pool) for side in latents.shape[-2:])

    def check(self, values: Tensor, latents: Tensor) -> None:
        """Raise ValueError for values `[G, ...]` on another grid than that of latents `[G, C, h, w]`."""
        if tuple(values.shape[1:]) != self.grid(latents):
            raise ValueError(
                f"advantage.pool {self.pool} on latents {tuple(latents.shape)}: expected advantages on a grid "
                f"{self.grid(latents)}, got {tuple(values.shape[1:])}; is the policy's cell_px right?"
            )

    def mean(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`[B, C, h, w]` -> `[B]` or `[B, rows, columns]`."""
        if self.pool is None or not self.grid(x):
            return x.flatten(1).mean(1, dtype=dtype)
        means = x.mean(dim=1, dtype=dtype)
        return means if self.pool == 1 else avg_pool2d(means, self.pool, ceil_mode=True)

    def shares(self, latents: Tensor) -> Tensor | None:
        """`[rows, columns]` in the dtype of the latents, each cell's share of the positions, which sum to 1; None for
        the whole latent."""
        if self.pool is None or not self.grid(latents):
            return None
        rows, columns = (
            latents.new_tensor([min(self.pool, side - at) / side for at in range(0, side, self.pool)])
            for side in latents.shape[-2:]
        )
        return rows[:, None] * columns


WHOLE = Cells()


def over_cells(values: Tensor, shares: Tensor | None) -> Tensor:
    """`[...]` as they are without shares; `[..., rows, columns]` averaged over the cells: `[...]`."""
    return values if shares is None else (values * shares).sum(dim=(-2, -1))
