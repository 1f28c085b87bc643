"""Weight-free faithfulness: does the super-resolved image, downscaled to LR size, match the LR image?

    D(SR) = clip( antialiased bicubic (a = -1/2) of SR to LR size, 0, 1 )      not re-quantised to 8 bits
    MSE   = mean over 3 channels and all LR pixels of ( D(SR) - LR )^2         pixels in [0, 1]
    score = min( cap_db, -10 log10 MSE )                                       PSNR in dB

Its map has the same formula with the mean over the LR pixels of one cell.

Measures only what the LR image shows: blur beyond the LR's Nyquist limit costs nothing, and where the LR image has
noise or compression artefacts, a score near the cap means that they were kept. Combine it with a quality reward.
Left out: the true degradation of a real photograph, which is unknown.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from rewards.base import Layer, LocalScores, RewardError, RewardInput, checked_scores, naming, score_each
from rewards.pixels import unit_batch
from rewards.sections import LrConsistencySection
from rl.types import F64, U8


class LrConsistency:
    """PSNR in dB between the downscaled candidate and the LR image.

    Args:
        section: `device` and `cap_db`, the score of a perfect match, are read.
    """

    needs_hr = False

    def __init__(self, section: LrConsistencySection) -> None:
        self.name = section.name
        self.cap_db = section.cap_db
        self._device = torch.device(section.device)

    def score(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> F64:
        """Scores `[G]` in dB, at most `cap_db`, of images `[G, 3, H, W]` against lr `[3, H/scale, W/scale]`.

        Raises:
            RewardError: lr is not the images' size divided by scale.
        """
        return checked_scores(self.name, self._db(self._errors(images, lr, scale).mean(axis=(1, 2))), len(images))

    def score_groups(self, groups: Sequence[RewardInput]) -> list[F64]:
        """The scores of each group, one by one."""
        return score_each(self.score, groups)

    def score_locally(self, groups: Sequence[RewardInput]) -> Sequence[LocalScores]:
        """The same with the squared errors of the LR pixels as map."""
        return score_each(self._local, groups)

    def _local(self, images: U8, lr: U8, hr: U8 | None, scale: int) -> LocalScores:
        errors = self._errors(images, lr, scale)
        scores = checked_scores(self.name, self._db(errors.mean(axis=(1, 2))), len(images))
        return LocalScores(scores, (Layer(errors),), self._db)

    def _db(self, mse: F64) -> F64:
        score: F64 = -10 * np.log10(np.maximum(mse, 10.0 ** (-self.cap_db / 10)))
        return score

    def _errors(self, images: U8, lr: U8, scale: int) -> F64:
        """`[G, H/scale, W/scale]` squared errors, mean over the channels."""
        expected = (3, images.shape[2] // scale, images.shape[3] // scale)
        if lr.shape != expected:
            raise RewardError(self.name, f"images {images.shape} at scale {scale} need lr {expected}, got {lr.shape}")
        with naming(self.name, "scoring"), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            x = unit_batch([images], self._device)
            down = interpolate(x, size=lr.shape[1:], mode="bicubic", antialias=True).clamp_(0, 1)
            error = down.sub_(unit_batch([lr[None]], self._device)).double()
            squared: F64 = error.square_().mean(dim=1).cpu().numpy()
            return squared
