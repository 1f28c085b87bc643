"""Distance of a member from its group's mean, in grey levels: it pays for what the others do not do."""

import numpy as np

from rl.types import F64, U8

CELL = 16


def score(images: U8, lr: U8, hr: U8 | None, scale: int) -> tuple[F64, F64]:
    members, _, height, width = images.shape
    x = images.astype(np.float64)
    distance = np.abs(x - x.mean(axis=0)).mean(axis=1)
    cells = distance.reshape(members, height // CELL, CELL, width // CELL, CELL).mean(axis=(2, 4))
    return cells.mean(axis=(1, 2)), cells
