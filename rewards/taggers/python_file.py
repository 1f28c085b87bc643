"""A user's own tagger: one Python file that defines `tag(images)`.

    def tag(images):                    # list of uint8 [3, H, W], RGB, sizes may differ
        return ["a tree, a lake"]       # one text per image, in their order; the run appends data.prompt_suffix

Arrays are read-only. To use RAM (github.com/xinyu1205/recognize-anything), the tagger of GDPO-SR and OSEDiff, load the
model at the top of such a file and return its tags from `tag()`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from rewards.base import TaggerError, naming
from rewards.taggers.sections import TAG_ARGUMENTS, PythonTaggerSection
from rewards.user_file import read_only, user_module
from rl.types import U8


class PythonFileTagger:
    """The `tag()` of a user's file, with its result checked for count, type and, once, order.

    Args:
        name: the data section, for messages.
        section: `file` is read.

    Raises:
        TaggerError: the file is missing, fails on import, or has no callable `tag`.
    """

    def __init__(self, name: str, section: PythonTaggerSection) -> None:
        self.name = name
        module = user_module(section.file, "tag", TAG_ARGUMENTS, name, TaggerError)
        self._where = f"tag() of {module.__file__}"
        self._tag: Callable[[list[U8]], Any] = module.tag
        self._order_verified = False

    def tag(self, images: Sequence[U8]) -> list[str]:
        """What the file's `tag()` returned, without surrounding spaces.

        The first batch with differing texts is a test: its last image must get the same text when tagged alone, else
        the texts are out of order or mix images.

        Raises:
            TaggerError: it raised, or did not return one non-empty text per image, in their order.
        """
        texts = self._call(images)
        if not self._order_verified and len(set(texts)) > 1:
            (alone,) = self._call(images[-1:])
            if alone != texts[-1]:
                raise TaggerError(
                    self.name,
                    f"{self._where}: expected the texts in the order of the images, each from its own image alone; the "
                    f"last of {len(texts)} images gets '{texts[-1]}' among the others and '{alone}' alone; fix the "
                    "order, or write batch_images: 1 where texts are drawn at random",
                )
            self._order_verified = True
        return texts

    def _call(self, images: Sequence[U8]) -> list[str]:
        with naming(self.name, self._where, TaggerError):
            return self._checked(self._tag([read_only(image) for image in images]), len(images))

    def _checked(self, raw: Any, count: int) -> list[str]:
        if not isinstance(raw, list | tuple) or len(raw) != count:
            got = f"{len(raw)} of them" if isinstance(raw, list | tuple) else f"{type(raw).__name__} {raw!r:.80}"
            raise TaggerError(self.name, f"{self._where}: expected a list of {count} texts, one per image, got {got}")
        bad = [k for k, text in enumerate(raw) if not isinstance(text, str) or not text.strip()]
        if bad:
            values = ", ".join(f"image {k}: {raw[k]!r:.80}" for k in bad[:4])
            raise TaggerError(self.name, f"{self._where}: expected texts that are not empty, got {values}", tuple(bad))
        return [text.strip() for text in raw]
