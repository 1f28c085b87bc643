"""Taggers: they write a prompt from the content of each image, for policies with a text encoder. isrl's own sections
are in `rewards/taggers/sections.py`."""

from typing import Annotated, Literal

from pydantic import Field

from rl.config.open_union import OpenUnion
from rl.config.server import ServerSection


class TaggerSection(ServerSection):
    """One tagger.

    RAM and DAPE, the taggers of GDPO-SR and OSEDiff, are not in any package that isrl installs. Load them in a file of
    `type: python`, and list its packages in `runtime_env` where they conflict with ours.

    Your own tagger extends this class and sets `builder` to a class that implements `rewards.taggers.server.Tagger`,
    built from the name of the tagged section (`data` or `eval.data`) and this section. A recipe selects it by
    `type: package.module:Class`.
    """

    image: Literal["hr", "lr"] = "hr"
    """Which image of a task is tagged. Published: the HR crop in training, the LR image at inference."""
    batch_images: int = Field(1, ge=1)
    """Images that one call may tag together."""

    @property
    def label(self) -> str:
        return "tagger"

    def check(self) -> None:
        """Raise ValueError for files that are missing or not what they should be. Torch-free, in milliseconds."""


TAGGERS: dict[str, str] = {
    "clip": "rewards.taggers.sections:ClipTaggerSection",
    "python": "rewards.taggers.sections:PythonTaggerSection",
}
AnyTagger = Annotated[TaggerSection, OpenUnion(TAGGERS, base=TaggerSection)]
"""A recipe's `data.tagger`."""
