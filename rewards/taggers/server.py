"""Taggers: images in, one text per image out, behind the same kind of server as a reward.

Left out: retries, deadlines and the check that texts belong to the images sent (`actors/`), transport, and replicas.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from rewards.base import TaggerError, naming
from rewards.server import limit_threads
from rl.config.open_union import load
from rl.config.tagger import TaggerSection
from rl.types import U8, ImageTags, TagRequest, image_digest


class Tagger(Protocol):
    """One tagger. A failure is a `TaggerError`; it never returns an empty text."""

    def tag(self, images: Sequence[U8]) -> list[str]:
        """One text per image `[3, H, W]`, in their order."""
        ...


class TaggerServer:
    """Tags images with one tagger.

    Args:
        name: the data section, for messages.
        config: the tagger to build.
        threads: torch's intra-op threads for this whole process; None leaves them as they are.

    Raises:
        TaggerError: the tagger could not be built.
    """

    def __init__(self, name: str, config: TaggerSection, *, threads: int | None = None) -> None:
        limit_threads(threads)
        self.name = name
        with naming(name, f"building {config.builder}", TaggerError):
            self.tagger: Tagger = load(config.builder)(name, config)

    def tag(self, requests: Sequence[TagRequest]) -> list[ImageTags]:
        """One answer per request, in their order; `seconds` is an equal share of the call.

        Raises:
            ValueError: an image is not uint8 `[3, H, W]`.
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
