"""The noising of DDPM models (Ho et al., arXiv 2006.11239), and the way back from a noise prediction.

z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps              x0 = (z_t - sqrt(1 - abar_t) e) / sqrt(abar_t)
"""

from torch import Tensor


def noised(z: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """z_t `[B, C, h, w]`; abar `[B]`."""
    abar = abar.view(-1, 1, 1, 1)
    return abar.sqrt() * z + (1 - abar).sqrt() * eps


def predicted_x0(z_t: Tensor, e: Tensor, abar: Tensor) -> Tensor:
    """x0 from z_t and a noise prediction, `[B, C, h, w]`; abar `[B]`."""
    abar = abar.view(-1, 1, 1, 1)
    return (z_t - (1 - abar).sqrt() * e) / abar.sqrt()


def guided(e_negative: Tensor, e_positive: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: e_negative + scale (e_positive - e_negative)."""
    return e_negative + scale * (e_positive - e_negative)
