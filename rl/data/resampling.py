"""PyTorch's `interpolate` (align_corners false, no antialiasing) in NumPy: the resizing of the published degradation.

A resize is linear along each axis, out = R x C', so it is two sparse matrices. PyTorch itself is not called, because
its threads wait for one another when many small images are resized while a model trains. cv2 cannot resize by a factor
instead of to a size, and weights the pixels of `area` by their share of a bin.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Pixels = NDArray[np.float32]
Mode = Literal["area", "bilinear", "bicubic"]

_CUBIC = -0.75
"""The slope of the cubic kernel at 1, as in PyTorch and cv2; MATLAB and PIL use -0.5."""


def interpolate(x: Pixels, size: tuple[int, int], mode: Mode, factor: float | None = None) -> Pixels:
    """`x` `[H, W, C]` resized to `size` (height, width).

    bilinear, bicubic: pixel i samples at (i + 1/2) / r - 1/2, with r the `factor` or, if that is None, out / in of the
    axis; outside `x` its edge pixels are repeated. As in PyTorch, bilinear copies an axis that keeps its size, whatever
    the factor, and bicubic resamples it. area: the mean of the pixels floor(i in / out) to ceil((i + 1) in / out) - 1,
    each with full weight.
    """
    for wanted in size:
        given = x.shape[0]
        matrix = _means(given, wanted) if mode == "area" else _taps(given, wanted, mode, factor or wanted / given)
        rows = matrix @ x.reshape(given, -1)
        x = rows.reshape(wanted, *x.shape[1:]).transpose(1, 0, 2)
    return np.ascontiguousarray(x)


def _taps(given: int, wanted: int, mode: Mode, ratio: float) -> csr_array:
    copied = mode == "bilinear" and wanted == given
    at = np.arange(wanted) if copied else (np.arange(wanted) + 0.5) / ratio - 0.5
    base = np.floor(at).astype(np.int64)
    offsets = np.arange(2) if mode == "bilinear" else np.arange(-1, 3)
    distance = np.abs((at - base)[:, None] - offsets)
    weights = 1 - distance if mode == "bilinear" else _cubic(distance)
    columns = np.clip(base[:, None] + offsets, 0, given - 1)
    rows = np.repeat(np.arange(wanted), len(offsets))
    return csr_array((weights.ravel().astype(np.float32), (rows, columns.ravel())), shape=(wanted, given))


def _cubic(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel: (a + 2) d^3 - (a + 3) d^2 + 1 up to 1, a (d^3 - 5 d^2 + 8 d - 4) up to 2."""
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d**2 + 1
    far = _CUBIC * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, far)


def _means(given: int, wanted: int) -> csr_array:
    edges = np.arange(wanted + 1) * given
    begin, end = edges[:-1] // wanted, -(-edges[1:] // wanted)
    pixels = np.arange(given)
    inside = (begin[:, None] <= pixels) & (pixels < end[:, None])
    return csr_array((inside / (end - begin)[:, None]).astype(np.float32))
