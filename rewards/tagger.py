"""Taggers: images in, one text per image out, behind the same kind of server as a reward.

A user's file of `type: python` defines `tag(images)`:

    def tag(images):                    # list of uint8 [3, H, W], RGB, sizes may differ
        return ["a tree, a lake"]       # one text per image, in their order; the run appends data.prompt_suffix

Arrays are read-only. RAM (github.com/xinyu1205/recognize-anything), with which GDPO-SR and OSEDiff tag, goes into such
a file: load the model at its top, answer its tags in `tag()`. Left out: retries, deadlines and the check that the texts
are those of the images sent (`actors/`), transport, and replicas.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rewards.base import TaggerError, naming
from rewards.checks import TAG_ARGUMENTS
from rewards.python_file import read_only, user_module
from rewards.server import limit_threads
from rl.config.tagger import TaggerConfig
from rl.types import U8, ImageTags, TagRequest, image_digest


class Tagger(Protocol):
    """One tagger. A failure is a `TaggerError`; no method ever answers an empty text."""

    def tag(self, images: Sequence[U8]) -> list[str]:
        """One text per image `[3, H, W]`, in their order."""
        ...


class PythonFileTagger:
    """The `tag()` of a user's file, its result checked for count, type and, once, for order.

    Args:
        name: the section of the data, for messages.
        config: `file` is read.

    Raises:
        TaggerError: the file is missing, fails on import, or has no callable `tag`.
    """

    def __init__(self, name: str, config: TaggerConfig) -> None:
        self.name = name
        module = user_module(config.file, "tag", TAG_ARGUMENTS, name, TaggerError)
        self._where = f"tag() of {module.__file__}"
        self._tag: Callable[[list[U8]], Any] = module.tag
        self._order_verified = False

    def tag(self, images: Sequence[U8]) -> list[str]:
        """What the file's `tag()` returned, without surrounding spaces.

        The first batch with different texts is a test: its last image has to get the same text alone, else the texts
        are in another order or mix images.

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
                    f"last of {len(texts)} images gets '{texts[-1]}' among the others and '{alone}' alone; mend the "
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


def _clip(name: str, config: TaggerConfig) -> Tagger:
    from rewards.clip_tagger import ClipTagger

    return ClipTagger(name, config)


TAGGERS: dict[str, Callable[[str, TaggerConfig], Tagger]] = {"clip": _clip, "python": PythonFileTagger}


class TaggerServer:
    """Tags images with one tagger.

    Args:
        name: the section of the data, for messages.
        config: the tagger to build.
        threads: torch's intra-op threads for this whole process; None leaves them as they are.

    Raises:
        TaggerError: the tagger could not be built.
    """

    def __init__(self, name: str, config: TaggerConfig, *, threads: int | None = None) -> None:
        limit_threads(threads)
        self.name = name
        self.tagger = TAGGERS[config.type](name, config)

    def tag(self, requests: Sequence[TagRequest]) -> list[ImageTags]:
        """One answer per request, in their order; `seconds` is an equal share of the call.

        Raises:
            ValueError: an image of another shape or type than uint8 `[3, H, W]`.
            TaggerError: an image could not be tagged; `ordinals` names those at fault.
        """
        for request in requests:
            image = request.image
            if image.ndim != 3 or len(image) != 3 or image.dtype != "uint8" or not image.size:
                raise ValueError(f"image {request.ordinal}: expected uint8 [3, H, W], got {image.dtype} {image.shape}")
        start = time.perf_counter()
        try:
            texts = self.tagger.tag([request.image for request in requests])
        except TaggerError as error:
            ordinals = tuple(requests[k].ordinal for k in error.groups or range(len(requests)))
            raise TaggerError(error.name, error.reason, error.groups, ordinals) from error
        share = (time.perf_counter() - start) / max(1, len(requests))
        return [
            ImageTags(request.ordinal, text, image_digest(request.image), share)
            for request, text in zip(requests, texts, strict=True)
        ]
