"""A recipe of the least that one has to say, and all fields of all sections for laws over them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rl.config.base import Section
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig
from rl.config.open_union import OpenUnion
from rl.config.pretrain import PRETRAINS


@pytest.fixture(scope="session")
def minimal() -> dict[str, Any]:
    """The least that an online recipe has to say."""
    return {"kind": "online", "data": {"path": "skimage:camera"}, "rewards": [{"name": "a", "type": "pyiqa"}]}


@pytest.fixture(scope="session")
def recipe(minimal: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `minimal`."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump(minimal))
    return file


@dataclass(frozen=True)
class SectionField:
    """One field of one section."""

    section: type[Section]
    name: str
    annotation: Any
    marks: tuple[Any, ...]
    """What is annotated on the field and inside its type."""

    def __str__(self) -> str:
        return f"{self.section.__name__}.{self.name}"

    def types(self) -> list[type]:
        """The classes in the annotation."""
        return [part for part in _parts(self.annotation) if isinstance(part, type)]


@pytest.fixture(scope="session")
def every_field() -> list[SectionField]:
    """Of every recipe, the sections in it and the members of its unions."""
    seen: set[type[Section]] = set()
    roots = [RunConfig, OfflineConfig, *(PRETRAINS.member(name) for name in PRETRAINS.registry)]
    return [found for root in roots for found in _fields(root, seen)]


def _fields(section: type[Section], seen: set[type[Section]]) -> Iterator[SectionField]:
    if section in seen:
        return
    seen.add(section)
    for name, info in section.model_fields.items():
        inner = [part for part in _parts(info.annotation) if not isinstance(part, type)]
        field = SectionField(section, name, info.annotation, (*info.metadata, *inner))
        yield field
        unions = [mark for mark in field.marks if isinstance(mark, OpenUnion)]
        members = [union.member(member) for union in unions for member in union.registry]
        for found in (*members, *field.types()):
            if issubclass(found, Section):
                yield from _fields(found, seen)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
