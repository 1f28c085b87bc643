"""Real-ESRGAN's second-order degradation (Wang et al. 2021, arXiv 2107.10833, section 3), seeded.

    LR = sinc . jpeg . [ noise . resize . blur ]_2 ( jpeg . noise . resize . blur (sharpen (HR)) )

A degradation is a tuple of steps; each is a frozen record of its random draws and maps one image to the next. `draw`
gives the steps for a recipe and a seed, `apply` applies steps to an HR image, `degrade` does both. Nothing depends on
global random state, so a pair is the same in any worker. With the same steps the published code (basicsr's
`degradations.py`, Real-ESRGAN's and GDPO's pipelines) gives the same images within one grey level;
`tests/rl/data/test_degradation_reference.py` compares the two.

JPEG is cv2's: a real encoder on rounded pixels, with integer quality. The published training imitates one on the GPU
(DiffJPEG), which at equal quality is 0.2 to 0.5 dB further from its input and 35 to 42 dB from cv2's. Left out: the
pool from which published batches are mixed, and augmentation. Images are uint8 RGB `[H, W, 3]`; arithmetic is float32
in [0, 1].
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from rl.config.degradation import Degradation, DegradationOrder
from rl.data.blur_kernels import Bell, Sinc, draw_kernel, draw_sinc
from rl.data.resampling import Mode, interpolate

Image = NDArray[np.uint8]
Pixels = NDArray[np.float32]
Operators = Literal["torch", "opencv"]

_MODES: dict[Mode, int] = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_BORDERS: dict[Operators, int] = {"torch": cv2.BORDER_REFLECT_101, "opencv": cv2.BORDER_REFLECT}
_USM_SIDE, _USM_WEIGHT, _USM_THRESHOLD = 51, 0.5, 10.0


class Step(Protocol):
    """One operation of a pipeline with its random draws fixed: a pure function of `[H, W, 3]` float32."""

    def __call__(self, x: Pixels) -> Pixels: ...


@dataclass(frozen=True)
class Sharpen:
    """Unsharp masking as in basicsr's USMSharp: m clip(x + (x - b) / 2) + (1 - m) x.

    b is x blurred by a Gaussian of 51 pixels and sigma 8, m the mask |x - b| > 10/255 under the same blur.
    """

    def __call__(self, x: Pixels) -> Pixels:
        residual = x - self._blur(x)
        mask = self._blur((np.abs(residual) * 255.0 > _USM_THRESHOLD).astype(np.float32))
        sharpened: Pixels = mask * _clip(x + _USM_WEIGHT * residual) + (1 - mask) * x
        return sharpened

    @staticmethod
    def _blur(x: Pixels) -> Pixels:
        blurred: Pixels = cv2.GaussianBlur(x, (_USM_SIDE, _USM_SIDE), 0, borderType=cv2.BORDER_REFLECT_101)
        return blurred


@dataclass(frozen=True)
class Blur:
    """Correlation with a kernel; the result may leave [0, 1] where the kernel rings."""

    kernel: Bell | Sinc
    operators: Operators

    def __call__(self, x: Pixels) -> Pixels:
        filtered: Pixels = cv2.filter2D(x, -1, self.kernel.weights(), borderType=_BORDERS[self.operators])
        return filtered


@dataclass(frozen=True)
class Resize:
    """Resampling to `size` (height, width); with `by_factor`, on the grid of the drawn `factor` (the first pass).

    torch: `rl.data.resampling.interpolate`. opencv: `cv2.resize`, with a grid that follows from the sizes.
    """

    size: tuple[int, int]
    mode: Mode
    operators: Operators
    factor: float | None = None
    by_factor: bool = False

    def __call__(self, x: Pixels) -> Pixels:
        if self.operators == "torch":
            return interpolate(x, self.size, self.mode, self.factor if self.by_factor else None)
        resized: Pixels = cv2.resize(x, self.size[::-1], interpolation=_MODES[self.mode])
        return resized


@dataclass(frozen=True)
class GaussianNoise:
    """clip(x + sigma n), n standard normal `[H, W, 3]`, or `[H, W, 1]` for grey noise; sigma in units of [0, 1]."""

    sigma: float
    field: Pixels

    def __call__(self, x: Pixels) -> Pixels:
        return _clip(x + self.field * np.float32(self.sigma))


@dataclass(frozen=True)
class PoissonNoise:
    """clip(x + s (k / L - c)), k the counts drawn from Poisson(L c).

    c is x (one grey channel for grey noise) rounded to 8-bit levels; L is the number of distinct levels in c, rounded
    up to a power of two.
    """

    strength: float
    gray: bool
    counts: NDArray[np.int64]
    operators: Operators

    def __call__(self, x: Pixels) -> Pixels:
        clean, levels = rate(x, self.gray, self.operators)
        shot = ((self.counts / levels - clean) * self.strength).astype(np.float32)
        return _clip(x + shot)


@dataclass(frozen=True)
class Jpeg:
    """cv2's JPEG of the rounded image; the quality is rounded too."""

    quality: float

    def __call__(self, x: Pixels) -> Pixels:
        bgr = np.ascontiguousarray(_quantise(x)[..., ::-1])
        ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(round(self.quality))])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if ok else None
        if decoded is None:
            raise RuntimeError(f"cv2 could not encode a {x.shape} image as JPEG of quality {self.quality}")
        pixels: Pixels = decoded[..., ::-1].astype(np.float32) / 255.0
        return pixels


def degrade(hr: Image, *, scale: int, recipe: Degradation, seed: int) -> Image:
    """Degrade `hr` `[H, W, 3]` uint8 to `[H/scale, W/scale, 3]` uint8; H and W must be divisible by `scale`.

    `hr` is the photograph itself: a recipe that sharpens does so here. `target` gives the image that is then degraded.
    """
    return _quantise(_Drawing(hr, scale, recipe, seed).x)


def draw(hr: Image, *, scale: int, recipe: Degradation, seed: int) -> tuple[Step, ...]:
    """The steps that `degrade` applies with these arguments."""
    return tuple(_Drawing(hr, scale, recipe, seed).steps)


def apply(hr: Image, steps: Sequence[Step]) -> Image:
    """The image after `steps`, rounded; with the steps of `draw`, bitwise equal to `degrade`."""
    return _quantise(functools.reduce(lambda x, step: step(x), steps, _pixels(hr)))


def target(hr: Image, recipe: Degradation) -> Image:
    """The ground truth for `degrade(hr, ...)`: sharpened if the recipe sharpens, else `hr` itself.

    Real-ESRGAN's pixel and perceptual losses use the sharpened image, its discriminator the photograph.
    """
    return apply(hr, (Sharpen(),)) if recipe.usm_sharpen_hr else hr


def rate(x: Pixels, gray: bool, operators: Operators) -> tuple[Pixels, float]:
    """Poisson noise's clean image c `[H, W, 3 or 1]` and its number of levels L; the counts' mean is L c."""
    if gray and operators == "opencv":
        x = x.mean(axis=2, keepdims=True)
    elif gray:
        red, green, blue = np.split(x, 3, axis=2)
        x = 0.2989 * red + 0.587 * green + 0.114 * blue
    rounded = _quantise(x)
    present = int(np.count_nonzero(np.bincount(rounded.ravel(), minlength=256)))
    least = 2 if operators == "opencv" else 1
    return _pixels(rounded), 2.0 ** math.ceil(math.log2(max(least, present)))


class _Drawing:
    """Draws a step, applies it, draws the next, because Poisson counts are drawn given the image."""

    def __init__(self, hr: Image, scale: int, recipe: Degradation, seed: int) -> None:
        height, width = hr.shape[:2]
        if height % scale or width % scale:
            raise ValueError(f"degrade: HR sides must be divisible by scale {scale}, got {width}x{height}; crop first")
        self.x = _pixels(hr)
        self.steps: list[Step] = []
        self.recipe = recipe
        self.rng = np.random.default_rng(seed)
        lr_size = (height // scale, width // scale)
        if recipe.usm_sharpen_hr:
            self.add(Sharpen())
        self.blur_resize_noise(recipe.first, None)
        self.add(Jpeg(self.rng.uniform(*recipe.first.jpeg_quality)))
        if self.rng.random() < recipe.second_order_probability:
            self.blur_resize_noise(recipe.second, lr_size if recipe.second_resize == "lr_size" else None)
        self.to_lr_with_jpeg(lr_size)

    def add(self, step: Step) -> None:
        self.x = step(self.x)
        self.steps.append(step)

    def blur_resize_noise(self, order: DegradationOrder, base: tuple[int, int] | None) -> None:
        if self.rng.random() < order.blur_probability:
            self.add(Blur(draw_kernel(order, self.rng), self.recipe.operators))
        self.add(draw_resize(self.x, order, base, self.recipe.operators, self.rng))
        self.add(draw_noise(self.x, order, self.recipe.operators, self.rng))

    def to_lr_with_jpeg(self, size: tuple[int, int]) -> None:
        """Resize and sinc filter, then JPEG, or the reverse, with equal probability."""
        jpeg = Jpeg(self.rng.uniform(*self.recipe.second.jpeg_quality))
        jpeg_last = self.rng.random() < 0.5
        if not jpeg_last:
            self.add(jpeg)
        self.add(Resize(size, _mode(self.rng), self.recipe.operators))
        if self.rng.random() < self.recipe.final_sinc_probability:
            sinc = draw_sinc(self.rng, by_size=self.recipe.final_sinc_cutoff == "by_size")
            self.add(Blur(sinc, self.recipe.operators))
        if jpeg_last:
            self.add(jpeg)


def draw_resize(
    x: Pixels, order: DegradationOrder, base: tuple[int, int] | None, operators: Operators, rng: np.random.Generator
) -> Resize:
    """A resize by a factor from `order`, relative to `base` (height, width) or, if None, to the size of `x`."""
    low, high = order.resize_range
    up, down, _keep = order.resize_probabilities
    chance = rng.random()
    factor = rng.uniform(1, high) if chance < up else rng.uniform(low, 1) if chance < up + down else 1.0
    height, width = (int(side * factor) for side in base or x.shape[:2])
    by_factor = base is None and min(height, width) > 0
    return Resize((max(1, height), max(1, width)), _mode(rng), operators, factor, by_factor)


def draw_noise(
    x: Pixels, order: DegradationOrder, operators: Operators, rng: np.random.Generator
) -> GaussianNoise | PoissonNoise:
    """Noise for `x`: Gaussian or Poisson, per channel or grey."""
    gray = rng.random() < order.gray_noise_probability
    if rng.random() < order.gaussian_noise_probability:
        sigma = rng.uniform(*order.noise_sigma_255) / 255.0
        return GaussianNoise(sigma, rng.standard_normal((*x.shape[:2], 1 if gray else 3), dtype=np.float32))
    strength = rng.uniform(*order.poisson_scale)
    clean, levels = rate(x, gray, operators)
    return PoissonNoise(strength, gray, rng.poisson(clean * levels), operators)


def _mode(rng: np.random.Generator) -> Mode:
    return tuple(_MODES)[rng.integers(3)]


def _pixels(image: Image) -> Pixels:
    return image.astype(np.float32) / np.float32(255.0)


def _clip(x: Pixels) -> Pixels:
    clipped: Pixels = np.clip(x, 0.0, 1.0)
    return clipped


def _quantise(x: Pixels) -> Image:
    quantised: Image = np.clip(np.rint(x * 255.0), 0, 255).astype(np.uint8)
    return quantised
