"""Who writes the prompts of a policy with a text encoder from what is seen in each image; the sections of isrl are in
`rewards/taggers/sections.py`."""

from typing import Annotated, Literal

from pydantic import Field

from rl.config.open_union import OpenUnion
from rl.config.server import ServerSection


class TaggerSection(ServerSection):
    """One tagger.

    RAM and DAPE, with which GDPO-SR and OSEDiff tag, are in none of the packages that isrl installs. Load them in a
    file of `type: python`, and name what it needs in `runtime_env` where that conflicts with our packages.

    A tagger of your own extends this class, sets `builder` to a class that fits `rewards.taggers.server.Tagger` and is
    made from the name of the tagged section (`data` or `eval.data`) and this section, and is named by
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
        """Refuse, by ValueError, files that are absent or are not what they should be. Torch-free, in milliseconds."""


TAGGERS: dict[str, str] = {
    "clip": "rewards.taggers.sections:ClipTaggerSection",
    "python": "rewards.taggers.sections:PythonTaggerSection",
}
AnyTagger = Annotated[TaggerSection, OpenUnion(TAGGERS, base=TaggerSection)]
"""A recipe's `data.tagger`."""
