"""Tasks in, tasks with a prompt out: the tagger's text for the image, plus the configured suffix."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.pool import Pool, Request
from actors.role import Role
from rewards.base import TaggerError
from rl.config.data import DataSection
from rl.config.online import RunConfig
from rl.config.tagger import TaggerSection
from rl.data.prompts import with_suffix
from rl.types import ImageTags, SRTask, TagRequest, image_digest


class TaggerPool(Pool[ImageTags]):
    """All replicas of one section's tagger behind one queue.

    Args:
        where: the section, `data` or `eval.data`.
        config: that section's tagger.
        suffix: that section's `prompt_suffix`.
        role: the taggers.
    """

    error = TaggerError
    doing = "tagging"

    def __init__(self, where: str, config: TaggerSection, suffix: str, role: Role) -> None:
        super().__init__(where, config, config.batch_images, role)
        self._image = config.image
        self._suffix = suffix

    async def prompted(self, task: SRTask) -> tuple[SRTask, float]:
        """The task with its prompt, and the seconds that tagging took.

        Raises:
            GroupFailed: after the configured retries the tagger still failed, or its answers did not match the image.
        """
        image = task.hr if self._image == "hr" else task.lr
        if image is None:
            raise ValueError(f"task {task.ordinal} '{task.lr_id}' has no HR image to tag; write tagger.image: lr")
        tags = await self._ask(task.ordinal, TagRequest(task.ordinal, image))
        return replace(task, prompt=with_suffix(tags.text, self._suffix)), tags.seconds

    def _send(self, handle: Any, batch: Sequence[Request[ImageTags]]) -> Awaitable[list[ImageTags]]:
        call: Awaitable[list[ImageTags]] = handle.tag.remote(*(request.carriers[0] for request in batch))
        return call

    def _check(self, batch: Sequence[Request[ImageTags]], answers: Sequence[ImageTags]) -> None:
        """Texts belong to images, not to positions: each answer must carry the digest of the image that was sent."""
        super()._check(batch, answers)
        wrong: list[tuple[int, str]] = []
        for request, answer in zip(batch, answers, strict=True):
            expected = image_digest(request.carriers[0].image)
            if (answer.ordinal, answer.digest) != (request.ordinal, expected):
                says = f"image {request.ordinal} with digest {expected}, got {answer.ordinal} with {answer.digest}"
                wrong.append((request.ordinal, says))
            elif not answer.text:
                wrong.append((request.ordinal, f"image {request.ordinal} to get tags, got an empty text"))
        if wrong:
            ordinals = tuple(ordinal for ordinal, _ in wrong)
            raise TaggerError(self.name, f"expected {'; '.join(says for _, says in wrong[:2])}", ordinals=ordinals)


def tagger_pools(config: RunConfig, roles: Mapping[str, Role]) -> dict[str, TaggerPool]:
    """Section -> the pool that writes its prompts; sections without a tagger are absent. `roles` are those of
    `config.taggers`; an evaluation may share that of training."""
    sections: dict[str, DataSection | None] = {
        "data": config.data,
        "eval.data": config.eval.data if config.eval else None,
    }
    return {
        where: TaggerPool(where, data.tagger, data.prompt_suffix, roles.get(where) or roles["data"])
        for where, data in sections.items()
        if data is not None and data.tagger is not None
    }
