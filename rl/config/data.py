"""Where images come from and how LR images are made of HR images."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rl.config.base import InputPath, Section
from rl.config.open_union import OpenUnion
from rl.config.prompts import PromptSection
from rl.config.tagger import AnyTagger

Range = tuple[float, float]


class DegradationOrder(Section):
    """One of the two passes of Real-ESRGAN's pipeline; defaults are its published first pass."""

    blur_probability: float = 1.0
    sinc_probability: float = 0.1
    kernel_probabilities: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """iso, aniso, generalized iso, generalized aniso, plateau iso, plateau aniso."""
    blur_sigma: Range = (0.2, 3.0)
    """Pixels at the size of that pass."""
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    resize_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Up, down, keep."""
    resize_range: Range = (0.15, 1.5)
    gaussian_noise_probability: float = 0.5
    """Else Poisson noise."""
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


REALESRGAN_SECOND = DegradationOrder(
    blur_probability=0.8,
    blur_sigma=(0.2, 1.5),
    resize_probabilities=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    noise_sigma_255=(1.0, 25.0),
    poisson_scale=(0.05, 2.5),
)
_LIGHT = DegradationOrder(
    blur_sigma=(0.2, 1.6),
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
    second: DegradationOrder = REALESRGAN_SECOND
    second_order_probability: float = Field(1.0, ge=0.0, le=1.0)
    final_sinc_probability: float = Field(0.8, ge=0.0, le=1.0)


DEGRADATIONS: dict[str, Degradation] = {
    "realesrgan": Degradation(),
    "light": Degradation(first=_LIGHT, second=_LIGHT, second_order_probability=0.3, final_sinc_probability=0.3),
    "gdpo": Degradation(first=_GDPO_FIRST, second=_GDPO_SECOND),
}
"""`realesrgan`: the published ranges. `light`: ours, for models of a few million parameters; Real-ESRGAN's full
ranges leave LR crops of 32 pixels with little to restore. `gdpo`: the ranges that NAOSD and GDPO-SR train
on, `GDPOSR/datasets/params_GDPO.yml` of github.com/Joyies/GDPO, where the second resize is relative to the LR size
and here to the size it meets."""

DegradationName = Literal["realesrgan", "light", "gdpo"]


def _form(value: Any) -> str:
    return "<ranges>" if isinstance(value, dict | Degradation) else "<name>"


DegradationChoice = Annotated[
    Annotated[DegradationName, Tag("<name>")] | Annotated[Degradation, Tag("<ranges>")], Discriminator(_form)
]
"""A named recipe or the ranges; the tag decides which of the two a mistake is explained as."""


class DataSection(PromptSection):
    """The stream of LR images, in an order that depends on the run's seed alone."""

    has_hr: ClassVar[bool] = True

    kind: str
    path: Annotated[list[str], Field(min_length=1), InputPath()]
    """Files, folders, or `skimage:<name>` for a photograph that scikit-image carries. A single string is accepted."""
    scale: int = Field(4, ge=1, le=8)
    crop: int = Field(128, ge=32)
    """Side of the HR crop in pixels; the LR crop is `crop / scale`."""
    flip: bool = False
    """Mirror every other image, by chance (GDPO-SR's training)."""
    enlargement: Literal["bicubic", "random"] = "bicubic"
    """How the policy enlarges the LR image: bicubically, or by bicubic, bilinear or area, drawn for each image
    (GDPO-SR's training)."""
    tagger: AnyTagger | None = None
    """Writes each image's prompt from what it sees there, instead of `prompt` and `prompt_path`."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop % self.scale:
            raise ValueError(f"data.crop must be divisible by data.scale {self.scale}, got {self.crop}")
        self._check_tagger()
        return self

    def _check_tagger(self) -> None:
        if self.tagger is None:
            return
        if self.prompt or self.prompt_path is not None:
            given = f"prompt '{self.prompt}'" if self.prompt else f"prompt_path '{self.prompt_path}'"
            raise ValueError(f"data.tagger and data.{given} exclude each other, got both: remove one")
        if self.tagger.image == "hr" and not self.has_hr:
            raise ValueError(
                f"data.tagger.image 'hr' needs data with HR, data.kind '{self.kind}' has none; write tagger.image: lr"
            )

    @property
    def source_side(self) -> int:
        """Side of a crop of the images in `path`."""
        return self.crop // self.scale


class PhotoData(DataSection):
    """Photographs, cropped and degraded on the fly."""

    kind: Literal["hr"] = "hr"
    degradation: DegradationChoice = "light"
    """A named recipe, or the full set of ranges."""

    @property
    def source_side(self) -> int:
        return self.crop

    @property
    def recipe(self) -> Degradation:
        return DEGRADATIONS[self.degradation] if isinstance(self.degradation, str) else self.degradation


class LRData(DataSection):
    """Real LR images without ground truth."""

    has_hr = False

    kind: Literal["lr"] = "lr"


class PairedData(DataSection):
    """Real LR images with an HR image of the same file name."""

    kind: Literal["paired"] = "paired"
    hr_path: Annotated[str, InputPath()]
    """The folder with the HR images."""


DATA: dict[str, str] = {
    "hr": "rl.config.data:PhotoData",
    "lr": "rl.config.data:LRData",
    "paired": "rl.config.data:PairedData",
}
AnyData = Annotated[DataSection, OpenUnion(DATA, base=DataSection, key="kind", default="hr")]
