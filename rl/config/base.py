"""The base of every configuration section: strict (unknown keys are errors), frozen and torch-free.

A field can carry two marks: `ReadWith` says when it is read at all, `InputPath` says that it names a file. Ray starts
its workers in another directory, so `Section.absolute` joins every marked path to the user's working directory, in
user-defined sections too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

SKIMAGE = "skimage:"
"""Prefix of a photograph bundled with scikit-image."""


class ReadWith:
    """Marks a field that is read only if another field of the same section has one of the given values.

    Otherwise setting it is refused, and a dumped configuration leaves it out. Error messages write None as `null`.

        size: Annotated[int, ReadWith("window", "random", "sliding")] = 4
    """

    def __init__(self, field: str, *values: object) -> None:
        self.field, self.values = field, values

    def read(self, section: "Section") -> bool:
        return getattr(section, self.field) in self.values


@dataclass(frozen=True)
class InputPath:
    """Marks a path, or a list or mapping of paths, that is read and not written."""

    may_be_name: bool = False
    """The value may also be a name or a URL: it is joined only where a file or folder exists."""

    def joined(self, value: str, root: Path) -> str:
        if value.startswith(SKIMAGE):
            return value
        path = str(root / Path(value).expanduser())
        return value if self.may_be_name and not Path(path).exists() else path


class Section(BaseModel):
    """A frozen section that refuses unknown keys and infinities; the string under a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def absolute(self, root: Path) -> Self:
        """A copy with every relative input path joined to `root`; bundled photographs, names and URLs are kept."""
        update = {}
        for name, field in type(self).model_fields.items():
            mark = next((m for m in field.metadata if isinstance(m, InputPath)), None)
            update[name] = _absolute(getattr(self, name), mark, root)
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _what_is_set_is_read(self) -> Self:
        for name, condition in self._unread():
            if name in self.model_fields_set:
                wanted = " or ".join(map(_yaml, condition.values))
                raise ValueError(
                    f"{name} is read only with {condition.field}: {wanted}, got {condition.field}: "
                    f"{_yaml(getattr(self, condition.field))}; remove {name}"
                )
        return self

    @model_serializer(mode="wrap")
    def _only_what_is_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unread = {name for name, _ in self._unread()}
        return {key: value for key, value in dump(self).items() if key not in unread}

    def _unread(self) -> list[tuple[str, ReadWith]]:
        return [
            (name, mark)
            for name, field in type(self).model_fields.items()
            for mark in field.metadata
            if isinstance(mark, ReadWith) and not mark.read(self)
        ]


def _absolute(value: Any, mark: InputPath | None, root: Path) -> Any:
    if isinstance(value, Section):
        return value.absolute(root)
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item, mark, root) for item in value)
    if isinstance(value, Mapping):
        return {key: _absolute(item, mark, root) for key, item in value.items()}
    return mark.joined(value, root) if mark is not None and isinstance(value, str) else value


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
