"""Where images come from and how LR images are made of HR images."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rl.config.degradation import DEGRADATIONS as DEGRADATIONS
from rl.config.degradation import Degradation as Degradation
from rl.config.degradation import DegradationChoice as DegradationChoice
from rl.config.degradation import DegradationName as DegradationName
from rl.config.degradation import DegradationOrder as DegradationOrder
from rl.config.prompts import PromptSection
from rl.config.tagger import TaggerConfig

SKIMAGE = "skimage:"
"""Begins the name of a photograph that scikit-image carries."""


class DataConfig(PromptSection):
    """The stream of LR images, in an order that depends on the run's seed alone."""

    kind: Literal["hr", "lr", "paired"] = "hr"
    """`hr`: photographs, cropped and degraded on the fly. `lr`: real LR images without HR. `paired`: LR images with
    an HR image of the same file name under `hr_path`."""
    path: list[str] = Field(min_length=1)
    """Files, folders, or `skimage:<name>` for a photograph that scikit-image carries. A single string is accepted."""
    hr_path: str | None = None
    scale: int = Field(4, ge=1, le=8)
    crop: int = Field(128, ge=32)
    """Side of the HR crop in pixels; the LR crop is `crop / scale`."""
    degradation: DegradationChoice = "light"
    """A named recipe, or the full set of ranges. Read only by `kind: hr`."""
    tagger: TaggerConfig | None = None
    """Writes each image's prompt from what it sees there, instead of `prompt` and `prompt_path`."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop % self.scale:
            raise ValueError(f"data.crop must be divisible by data.scale {self.scale}, got {self.crop}")
        if self.kind == "paired" and self.hr_path is None:
            raise ValueError("data.kind 'paired' needs data.hr_path: a folder with HR images of the same file names")
        if self.kind != "paired" and self.hr_path is not None:
            raise ValueError(f"data.hr_path is read only by data.kind 'paired', got kind '{self.kind}': remove it")
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
    def has_hr(self) -> bool:
        return self.kind != "lr"

    @property
    def recipe(self) -> Degradation:
        return DEGRADATIONS[self.degradation] if isinstance(self.degradation, str) else self.degradation
