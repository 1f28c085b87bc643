"""Where the prompts of a policy with a text encoder come from."""

from typing import Annotated, Self

from pydantic import model_validator

from rl.config.base import InputPath, Section


class PromptSection(Section):
    """One text for all images, or one text file per image."""

    prompt: str = ""
    """One text for every image, for policies with a text encoder."""
    prompt_path: Annotated[str | None, InputPath()] = None
    """A folder with `<image name>.txt` for every image, instead of `prompt`; GDPO-SR uses RAM's tags."""
    prompt_suffix: str = ""
    """Appended to every prompt; GDPO-SR and OSEDiff: `clean, high-resolution, 8k`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.prompt and self.prompt_path is not None:
            raise ValueError(f"prompt and prompt_path exclude each other, got both ('{self.prompt}')")
        return self
