"""`lr_consistency` with a map that is half noise: to the decibels of every cell comes a Gaussian as wide as they spread
in the group there. The score stays what it is."""

import numpy as np

from rewards.base import RewardInput
from rewards.lr_consistency import LrConsistency
from rewards.sections import LrConsistencySection
from rl.types import F64, U8

CELL = 4
"""LR pixels of one latent position of the quickstart at x4."""
_REWARD = LrConsistency(LrConsistencySection(name="clean"))


def score(images: U8, lr: U8, hr: U8 | None, scale: int) -> tuple[F64, F64]:
    """The noise depends on the images alone, so that a run can be repeated."""
    one = RewardInput(images, lr, hr, scale)
    (local,) = _REWARD.score_locally([one])
    values = local.in_cells("noisy_lr", one.size, CELL * scale)
    rng = np.random.default_rng(int(images.astype(np.int64).sum()))
    return local.scores, values + values.std(axis=0, ddof=1) * rng.standard_normal(values.shape)
