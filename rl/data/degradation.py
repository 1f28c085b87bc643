"""Real-ESRGAN's second-order degradation (Wang et al. 2021, arXiv 2107.10833, section 3), seeded.

    LR = sinc . jpeg . [ noise . resize . blur ]_2 ( jpeg . noise . resize . blur (HR) )

One function turns one HR image and one seed into one LR image; nothing depends on global random state, so a pair is
the same in any worker. Images are uint8 RGB `[H, W, 3]`; arithmetic is float32 in [0, 1].
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from rl.config.data import Degradation, DegradationOrder

Image = NDArray[np.uint8]
Pixels = NDArray[np.float32]

_KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
_RESIZE_MODES = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def degrade(hr: Image, *, scale: int, recipe: Degradation, seed: int) -> Image:
    """Degrade `hr` `[H, W, 3]` uint8 to `[H/scale, W/scale, 3]` uint8; H and W must be divisible by `scale`."""
    height, width = hr.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"degrade: HR sides must be divisible by scale {scale}, got {width}x{height}; crop first")
    rng = np.random.default_rng(seed)
    x: Pixels = hr.astype(np.float32) / 255.0
    x = _blur_resize_noise(x, recipe.first, rng)
    x = _jpeg(x, rng.uniform(*recipe.first.jpeg_quality))
    if rng.random() < recipe.second_order_probability:
        x = _blur_resize_noise(x, recipe.second, rng)
    x = _to_lr_with_jpeg(x, (width // scale, height // scale), recipe, rng)
    return _quantise(x)


def _blur_resize_noise(x: Pixels, order: DegradationOrder, rng: np.random.Generator) -> Pixels:
    if rng.random() < order.blur_probability:
        x = _filter(x, _blur_kernel(order, rng))
    x = _random_resize(x, order, rng)
    return _clip(_noise(x, order, rng))


def _to_lr_with_jpeg(x: Pixels, size: tuple[int, int], recipe: Degradation, rng: np.random.Generator) -> Pixels:
    """The last resize, sinc filter and JPEG, in either order with equal chance, as Real-ESRGAN does."""
    quality = rng.uniform(*recipe.second.jpeg_quality)
    resized_first = rng.random() < 0.5
    if not resized_first:
        x = _jpeg(x, quality)
    x = _resize(x, size, rng)
    if rng.random() < recipe.final_sinc_probability:
        x = _clip(_filter(x, _sinc_kernel(rng)))
    return _jpeg(x, quality) if resized_first else x


def _filter(x: Pixels, kernel: Pixels) -> Pixels:
    filtered: Pixels = cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT)
    return filtered


def _resize(x: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    resized: Pixels = cv2.resize(x, size, interpolation=_RESIZE_MODES[rng.integers(3)])
    return resized


def _clip(x: Pixels) -> Pixels:
    clipped: Pixels = np.clip(x, 0.0, 1.0)
    return clipped


def _quantise(x: Pixels) -> Image:
    quantised: Image = np.clip(np.rint(x * 255.0), 0, 255).astype(np.uint8)
    return quantised


def _jpeg(x: Pixels, quality: float) -> Pixels:
    bgr = np.ascontiguousarray(_quantise(x)[..., ::-1])
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(round(quality))])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if ok else None
    if decoded is None:
        raise RuntimeError(f"cv2 could not encode a {x.shape} image as JPEG of quality {quality}")
    pixels: Pixels = decoded[..., ::-1].astype(np.float32) / 255.0
    return pixels


def _random_resize(x: Pixels, order: DegradationOrder, rng: np.random.Generator) -> Pixels:
    low, high = order.resize_range
    up, down, _keep = order.resize_probabilities
    draw = rng.random()
    factor = rng.uniform(1, high) if draw < up else rng.uniform(low, 1) if draw < up + down else 1.0
    height, width = x.shape[:2]
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return _resize(x, size, rng)


def _noise(x: Pixels, order: DegradationOrder, rng: np.random.Generator) -> Pixels:
    gray = rng.random() < order.gray_noise_probability
    if rng.random() < order.gaussian_noise_probability:
        sigma = rng.uniform(*order.noise_sigma_255) / 255.0
        shape = (*x.shape[:2], 1) if gray else x.shape
        return x + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    strength = rng.uniform(*order.poisson_scale)
    clean = x.mean(axis=2, keepdims=True) if gray else x
    clean = np.clip(np.rint(clean * 255.0), 0, 255) / 255.0
    levels = 2.0 ** math.ceil(math.log2(max(2, len(np.unique(clean)))))
    shot: Pixels = ((rng.poisson(clean * levels) / levels - clean) * strength).astype(np.float32)
    return x + shot


def _blur_kernel(order: DegradationOrder, rng: np.random.Generator) -> Pixels:
    if rng.random() < order.sinc_probability:
        return _sinc_kernel(rng)
    kind = _KERNELS[rng.choice(len(_KERNELS), p=np.asarray(order.kernel_probabilities))]
    size = 2 * int(rng.integers(3, 11)) + 1
    sigma_x = rng.uniform(*order.blur_sigma)
    isotropic = not kind.endswith("aniso")
    sigma_y = sigma_x if isotropic else rng.uniform(*order.blur_sigma)
    theta = 0.0 if isotropic else rng.uniform(-math.pi, math.pi)
    energy = _mahalanobis(size, sigma_x, sigma_y, theta)
    if kind.startswith("generalized"):
        kernel = np.exp(-0.5 * energy ** rng.uniform(*order.generalized_beta))
    elif kind.startswith("plateau"):
        kernel = 1.0 / (1.0 + energy ** rng.uniform(*order.plateau_beta))
    else:
        kernel = np.exp(-0.5 * energy)
    return _normalised(kernel)


def _normalised(kernel: NDArray[np.float64]) -> Pixels:
    summed_to_one: Pixels = (kernel / kernel.sum()).astype(np.float32)
    return summed_to_one


def _mahalanobis(size: int, sigma_x: float, sigma_y: float, theta: float) -> NDArray[np.float64]:
    axis = np.arange(size) - size // 2
    xx, yy = np.meshgrid(axis, axis)
    u = (xx * math.cos(theta) + yy * math.sin(theta)) / sigma_x
    v = (-xx * math.sin(theta) + yy * math.cos(theta)) / sigma_y
    return np.asarray(u**2 + v**2, dtype=np.float64)


def _sinc_kernel(rng: np.random.Generator) -> Pixels:
    """A circular low-pass kernel, cutoff w: w J1(w r) / (2 pi r), which adds the ringing of over-sharpened photos."""
    size = 2 * int(rng.integers(3, 11)) + 1
    cutoff = rng.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi)
    axis = np.arange(size) - size // 2
    r = np.hypot(*np.meshgrid(axis, axis))
    centre = size // 2
    r[centre, centre] = 1.0
    kernel = cutoff * j1(cutoff * r) / (2 * math.pi * r)
    kernel[centre, centre] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)
