"""A reward without a place, and what it looks like if it is given one all the same.

score   minus the distance between the mean colours of candidate and HR image, grey levels
map     minus the distance between each cell's own mean colour and the HR image's mean: wrong, a cell is not the image
"""

import numpy as np

from rl.types import F64, U8

NEEDS_HR = True
CELL = 16


def score(images: U8, lr: U8, hr: U8, scale: int) -> tuple[F64, F64]:
    members, _, height, width = images.shape
    target = hr.reshape(3, -1).mean(axis=1)
    cells = images.astype(np.float64).reshape(members, 3, height // CELL, CELL, width // CELL, CELL).mean(axis=(3, 5))
    means = cells.mean(axis=(2, 3))
    scores = -np.linalg.norm(means - target, axis=1)
    return scores, -np.linalg.norm(cells - target[None, :, None, None], axis=1)
