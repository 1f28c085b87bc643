"""Picks the best of several candidates for one image, by one or more rewards."""

import numpy as np

from rl.types import F64


def combined(scores: F64) -> F64:
    """`[N, R]` raw scores of N candidates, higher is better -> `[N]`.

        z_nk = (s_nk - mean_n s_nk) / std_n s_nk        0 for a reward that is equal for all candidates
        c_n  = mean_k z_nk

    Scores are standardised over the candidates, so rewards in any unit count equally; a single reward keeps its own
    order. Standard deviations are biased; LucidNFT's `decoupled` advantages of a group give the same order.
    """
    centred = scores - scores.mean(axis=0)
    # the std of n equal floats is not always 0, because their mean rounds
    flat = np.ptp(scores, axis=0) == 0.0
    z = np.where(flat, 0.0, centred / np.where(flat, 1.0, scores.std(axis=0)))
    mean: F64 = z.mean(axis=1)
    return mean
