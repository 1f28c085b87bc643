"""Where images come from."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rl.config.base import InputPath
from rl.config.degradation import DEGRADATIONS, Degradation, DegradationChoice
from rl.config.open_union import OpenUnion
from rl.config.prompts import PromptSection
from rl.config.tagger import AnyTagger


class DataSection(PromptSection):
    """The stream of LR images, in an order that depends on the run's seed alone."""

    has_hr: ClassVar[bool] = True

    kind: str
    path: Annotated[list[str], Field(min_length=1), InputPath()]
    """Files, folders, or `skimage:<name>` for a photograph bundled with scikit-image. A single string is accepted."""
    scale: int = Field(4, ge=1, le=8)
    crop: int = Field(128, ge=32)
    """Side of the HR crop in pixels; the LR crop is `crop / scale`."""
    flip: bool = False
    """Mirror each image with probability 1/2 (GDPO-SR's training)."""
    enlargement: Literal["bicubic", "random"] = "bicubic"
    """How the policy enlarges the LR image; `random` draws bicubic, bilinear or area for each image (GDPO-SR's
    training)."""
    tagger: AnyTagger | None = None
    """Writes each image's prompt from its content, in place of `prompt` and `prompt_path`."""

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
        """Side of a crop from the images in `path`."""
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
DATA_UNION = OpenUnion(DATA, base=DataSection, key="kind", default="hr")
AnyData = Annotated[DataSection, DATA_UNION]
