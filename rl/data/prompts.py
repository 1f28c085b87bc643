"""Prompts: one text for every image, or one text file per image."""

from collections.abc import Sequence
from pathlib import Path

from rl.config.base import SKIMAGE
from rl.config.prompts import PromptSection
from rl.errors import MissingInput


def load_prompts(config: PromptSection, names: Sequence[str]) -> dict[str, str]:
    """Image name -> prompt. With `prompt_path`, the text of `<prompt_path>/<image name>.txt`; a missing file is an
    error that names it. Otherwise `prompt` for all. `prompt_suffix` is appended to either, after a comma.

    Texts belong to names, never to positions, so a prompt cannot end up with another image.
    """
    if config.prompt_path is None:
        return dict.fromkeys(names, with_suffix(config.prompt, config.prompt_suffix))
    folder = Path(config.prompt_path).expanduser()
    files = {name: folder / f"{Path(name.removeprefix(SKIMAGE)).stem}.txt" for name in names}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise MissingInput(
            f"prompt_path {folder}: expected one .txt per image, {len(missing)} of {len(names)} are missing: "
            f"{', '.join(missing[:3])}"
        )
    return {name: with_suffix(file.read_text().strip(), config.prompt_suffix) for name, file in files.items()}


def with_suffix(text: str, suffix: str) -> str:
    """A prompt followed by a comma and the suffix; an empty part is left out."""
    return ", ".join(part for part in (text, suffix) if part)
