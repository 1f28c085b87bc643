"""A section chosen by name from a registry that is open to user-defined classes.

    policy: Annotated[PolicySection, OpenUnion(POLICIES, base=PolicySection, default="flux2sr")]

A registry is a dict literal from name to `module:Class`. A name with a colon is itself such a reference, so a user's
class needs no registration. The module is imported when the name is used, in every process that reads the section.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import CoreSchema, core_schema

from rl.config.base import Section


@dataclass(frozen=True, eq=False)
class OpenUnion:
    """Annotation of a field.

    Args:
        registry: name -> `module:Class`.
        base: the section that every member extends.
        key: the field that holds the name.
        default: the name used if the key is absent; None makes the key required.
    """

    registry: Mapping[str, str]
    base: type[Section]
    key: str = "type"
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def validate(self, value: Any) -> Section:
        """The section that a mapping names; a section of the union is returned as it is."""
        if isinstance(value, self.base):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping with {self.key}: {self._names()}, got {value!r}")
        name = value.get(self.key, self.default)
        return self.member(name).model_validate({**value, self.key: name})

    def member(self, name: Any) -> type[Section]:
        """The section class of a name."""
        if not isinstance(name, str) or (name not in self.registry and ":" not in name):
            raise ValueError(f"{self.key} must be one of {self._names()}, got {name!r}")
        reference = self.registry.get(name, name)
        found = load(reference)
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise ValueError(
                f"{self.key} '{reference}': expected a class that extends {self.base.__name__}, got {found!r}"
            )
        return found

    def _names(self) -> str:
        return f"{', '.join(self.registry)}, or package.module:Class"


def load(reference: str) -> Any:
    """The object that `package.module:Name` names; ValueError where there is none."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'{reference}': {error}; a module is found in the directory that isrl is started from, or on PYTHONPATH"
        ) from error
