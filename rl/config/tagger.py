"""Who writes the prompts of a policy with a text encoder from what is seen in each image."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rl.config.server import ServerSection

CLIP_ONLY = ("path", "tags", "template", "top_k", "threshold")


class TaggerConfig(ServerSection):
    """One tagger: CLIP over a list of tags, or a user's Python file.

    RAM and DAPE, with which GDPO-SR and OSEDiff tag, are in none of the packages that isrl installs. Load them in a
    file of `type: python`, and name what it needs in `runtime_env` where that conflicts with our packages.
    """

    type: Literal["clip", "python"]
    image: Literal["hr", "lr"] = "hr"
    """Which image of a task is tagged. Published: the HR crop in training, the LR image at inference."""
    path: str | None = None
    """A local folder with a CLIP model and its processor, as transformers saves them. Read only by `type: clip`."""
    tags: str | None = None
    """A text file with one tag per line. Read only by `type: clip`."""
    template: str = "a photo of {}"
    """What CLIP's text encoder sees of a tag, `{}` stands for it; the prompt holds the tag alone."""
    top_k: int = Field(8, ge=1)
    """Most tags of one image, the likeliest first. Read only by `type: clip`."""
    threshold: float = Field(0.0, ge=0, lt=1)
    """Tags under this probability (softmax over the whole list) are left out, except the likeliest: a prompt is never
    empty. Read only by `type: clip`."""
    file: str | None = None
    """A Python file that defines `tag(images) -> list[str]`. Read only by `type: python`."""
    batch_images: int = Field(1, ge=1)
    """Images that one call may tag together."""

    @property
    def label(self) -> str:
        return "tagger"

    @model_validator(mode="after")
    def _fields_match_type(self) -> Self:
        if self.type == "python" and self.file is None:
            raise ValueError("tagger: type 'python' needs file: a Python file that defines tag()")
        if self.type == "clip" and (self.path is None or self.tags is None):
            raise ValueError(
                f"tagger: type 'clip' needs path (a folder with a CLIP model) and tags (a text file with one tag per "
                f"line), got path {self.path!r} and tags {self.tags!r}"
            )
        for field, owner in (("file", "python"), *((name, "clip") for name in CLIP_ONLY)):
            if self.type != owner and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"tagger: {field} is read only by type '{owner}', got '{self.type}'")
        if self.template.count("{}") != 1:
            raise ValueError(f"tagger: template must hold {{}} once, where the tag goes, got '{self.template}'")
        return self
