"""isrl's own tagger sections: the keys that each type reads, and what can be refused before a process starts.

A tagger is one section here and the class that `builder` names. Imports no torch.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rewards.user_file import check_user_file
from rl.config.base import InputPath
from rl.config.server import DeviceSection
from rl.config.tagger import TaggerSection

TAG_ARGUMENTS = ("images",)
CLIP_FILES = (
    ("config.json",),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "vocab.json"),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
)
"""What a CLIP folder contains: one file of each row, because names differ between transformers 4 and 5."""


class ClipTaggerSection(DeviceSection, TaggerSection):
    """CLIP over a list of tags (`rewards/taggers/clip.py`)."""

    builder = "rewards.taggers.clip:ClipTagger"

    type: Literal["clip"] = "clip"
    path: Annotated[str, InputPath()]
    """A local folder with a CLIP model and its processor, as transformers saves them."""
    tags: Annotated[str, InputPath()]
    """A text file with one tag per line."""
    template: str = "a photo of {}"
    """The text that CLIP's text encoder sees, with the tag in place of `{}`; the prompt holds only the tag."""
    top_k: int = Field(8, ge=1)
    """Maximum number of tags per image, most likely first."""
    threshold: float = Field(0.0, ge=0, lt=1)
    """Tags below this probability (softmax over the whole list) are left out, except the most likely one: a prompt is
    never empty."""

    @field_validator("template")
    @classmethod
    def _one_place_for_the_tag(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"must hold {{}} once, where the tag goes, got '{template}'")
        return template

    def check(self) -> None:
        folder = Path(self.path).expanduser()
        missing = [" or ".join(names) for names in CLIP_FILES if not any((folder / name).is_file() for name in names)]
        if missing:
            raise ValueError(
                f"path: expected a local folder with a CLIP model as transformers saves it, {folder} lacks "
                f"{', '.join(missing)}"
            )
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clip":
            raise ValueError(f"path: expected model_type 'clip' in {folder}/config.json, got {kind!r}")
        read_tags(Path(self.tags).expanduser())


class PythonTaggerSection(TaggerSection):
    """The `tag(images)` of a user's Python file (`rewards/taggers/python_file.py`)."""

    builder = "rewards.taggers.python_file:PythonFileTagger"

    type: Literal["python"] = "python"
    file: Annotated[str, InputPath()]

    def check(self) -> None:
        check_user_file(Path(self.file).expanduser(), "tag", TAG_ARGUMENTS)


def read_tags(path: Path) -> tuple[str, ...]:
    """The tags in the file's order; blank lines and surrounding spaces are ignored.

    Raises:
        ValueError: no such file, no tags in it, or a repeated tag (the copies would split its probability).
    """
    if not path.is_file():
        raise ValueError(f"tags: file '{path}' does not exist; give the path of a text file with one tag per line")
    tags = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not tags:
        raise ValueError(f"tags: expected one tag per line in {path}, found none")
    twice = [tag for tag, count in Counter(tags).items() if count > 1]
    if twice:
        raise ValueError(f"tags: expected each tag once in {path}, found more of {twice[:5]}")
    return tags
