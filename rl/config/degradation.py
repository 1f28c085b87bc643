"""The recipes that degrade HR images to LR images: the parameters of Real-ESRGAN's second-order pipeline.

Defaults are Real-ESRGAN's published values, from `options/train_realesrgan_x4plus.yml` and the code that reads it.
Fields with two named choices mark where another recipe departs from that code. The pipeline itself is
`rl.data.degradation`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from rl.config.base import Section

Range = tuple[float, float]


class DegradationOrder(Section):
    """One of the two passes of Real-ESRGAN's pipeline; defaults are its published first pass."""

    blur_probability: float = 1.0
    sinc_probability: float = 0.1
    kernel_probabilities: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """iso, aniso, generalized iso, generalized aniso, plateau iso, plateau aniso."""
    blur_sigma: Range = (0.2, 3.0)
    """In pixels, at the image size of that pass."""
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    beta_draw: Literal["halves", "uniform"] = "halves"
    """`halves`: below or above 1 with equal chance, uniform in either half (published; a plateau's lower half is 1
    itself). `uniform`: over the whole range."""
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Up, down, keep."""
    resize_range: Range = (0.15, 1.5)
    """Factors: down from the first number to 1, up from 1 to the second."""
    gaussian_noise_probability: float = 0.5
    """Otherwise Poisson noise."""
    noise_sigma_255: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)
    gray_noise_probability: float = 0.4
    jpeg_quality: Range = (30.0, 95.0)

    @model_validator(mode="after")
    def _probabilities_and_ranges(self) -> Self:
        for name, value in self:
            if name.endswith("probabilities") and (min(value) < 0 or abs(sum(value) - 1) > 1e-6):
                raise ValueError(f"{name} must be at least 0 and sum to 1, got {list(value)}")
            if name.endswith("probability") and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
            if isinstance(value, tuple) and len(value) == 2 and not 0 <= value[0] <= value[1]:
                raise ValueError(f"{name} must be [low, high] with 0 <= low <= high, got {list(value)}")
        return self

    @model_validator(mode="after")
    def _ranges_around_one(self) -> Self:
        betas = ("generalized_beta", "plateau_beta") if self.beta_draw == "halves" else ()
        for name in ("resize_range", *betas):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{name} is drawn below or above 1 and must contain it, got {[low, high]}")
        return self


_REALESRGAN_SECOND = DegradationOrder(
    blur_probability=0.8,
    blur_sigma=(0.2, 1.5),
    resize_probabilities=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    noise_sigma_255=(1.0, 25.0),
    poisson_scale=(0.05, 2.5),
)
_LIGHT = DegradationOrder(
    blur_sigma=(0.2, 1.6),
    beta_draw="uniform",
    resize_probabilities=(0.2, 0.5, 0.3),
    resize_range=(0.5, 1.2),
    noise_sigma_255=(1.0, 8.0),
    poisson_scale=(0.05, 0.8),
    jpeg_quality=(60.0, 95.0),
)
_GDPO_FIRST = DegradationOrder(
    resize_range=(0.3, 1.5),
    noise_sigma_255=(1.0, 15.0),
    poisson_scale=(0.05, 2.0),
    jpeg_quality=(60.0, 95.0),
)
_GDPO_SECOND = DegradationOrder(
    blur_probability=0.5,
    blur_sigma=(0.2, 1.5),
    resize_probabilities=(0.3, 0.4, 0.3),
    resize_range=(0.6, 1.2),
    noise_sigma_255=(1.0, 12.0),
    poisson_scale=(0.05, 1.0),
    jpeg_quality=(60.0, 100.0),
)


class Degradation(Section):
    """Both passes of the second-order pipeline."""

    first: DegradationOrder = DegradationOrder()
    second: DegradationOrder = _REALESRGAN_SECOND
    second_order_probability: float = Field(1.0, ge=0.0, le=1.0)
    """Otherwise the second pass skips blur, resize and noise, but not JPEG."""
    final_sinc_probability: float = Field(0.8, ge=0.0, le=1.0)
    usm_sharpen_hr: bool = True
    """Sharpen the HR image by unsharp masking, both before degrading it and as `rl.data.degradation.target`."""
    second_resize: Literal["lr_size", "current_size"] = "lr_size"
    """What the second resize's factor multiplies: the LR size (published) or the size after the first pass."""
    final_sinc_cutoff: Literal["third", "by_size"] = "third"
    """Lowest cutoff of the final sinc filter. `third`: pi/3 (published). `by_size`: as in the passes' own sinc filters,
    pi/3 for kernels below 13 pixels, else pi/5."""
    operators: Literal["torch", "opencv"] = "torch"
    """`torch`: PyTorch's resizing, reflected borders without the edge pixel, grey Poisson noise from luma (published).
    `opencv`: cv2's resizing, reflected borders with the edge pixel, grey Poisson noise from the channel mean."""


DEGRADATIONS: dict[str, Degradation] = {
    "realesrgan": Degradation(),
    "light": Degradation(
        first=_LIGHT,
        second=_LIGHT,
        second_order_probability=0.3,
        final_sinc_probability=0.3,
        usm_sharpen_hr=False,
        second_resize="current_size",
        final_sinc_cutoff="by_size",
        operators="opencv",
    ),
    "gdpo": Degradation(first=_GDPO_FIRST, second=_GDPO_SECOND, usm_sharpen_hr=False),
}
"""`realesrgan`: as published. `light`: ours, for models of a few million parameters: Real-ESRGAN's full ranges leave
little to restore in 32-pixel LR crops. The embedded presets were trained with its departures from the published code.
`gdpo`: what NAOSD and GDPO-SR train on, `GDPOSR/datasets/params_GDPO.yml` of github.com/Joyies/GDPO, without
sharpening."""

DegradationName = Literal["realesrgan", "light", "gdpo"]


def _form(value: Any) -> str:
    return "<ranges>" if isinstance(value, dict | Degradation) else "<name>"


DegradationChoice = Annotated[
    Annotated[DegradationName, Tag("<name>")] | Annotated[Degradation, Tag("<ranges>")], Discriminator(_form)
]
"""A named recipe or the ranges; the tag decides which of the two an error message refers to."""
