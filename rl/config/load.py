"""YAML plus dotted overrides in, a validated recipe of its `kind` out; every error is one readable line."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from rl.config.base import Section
from rl.config.offline import OfflineConfig
from rl.config.online import RunConfig
from rl.config.open_union import OpenUnion
from rl.config.pretrain import PRETRAINS, PretrainSection
from rl.config.training import TrainingSection
from rl.errors import InputError

Model = TypeVar("Model", bound=Section)


class ConfigError(InputError):
    """A configuration that cannot run; the message says what was expected, what was given and what to write."""


def _online(raw: dict[str, Any]) -> type[Section]:
    return RunConfig


def _offline(raw: dict[str, Any]) -> type[Section]:
    return OfflineConfig


def _pretrain(raw: dict[str, Any]) -> type[Section]:
    return PRETRAINS.member(raw.get("type", PRETRAINS.default))


KINDS: dict[str, Callable[[dict[str, Any]], type[Section]]] = {
    "online": _online,
    "offline": _offline,
    "pretrain": _pretrain,
}
"""`kind` at the root of a recipe -> its section. `isrl train` runs `online` and `offline`."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Section:
    """Read `path`, apply `a.b.0.c=value` overrides in order (values are YAML), validate by its `kind`."""
    raw = read_recipe(path, overrides)
    # schema version 1 had no kind: the section refuses it and says what has moved since
    kind = raw.get("kind", "online" if "schema_version" in raw else None)
    if not isinstance(kind, str) or kind not in KINDS:
        got = f"got {kind!r}" if "kind" in raw else "got none"
        raise ConfigError(f"{path}:\n  kind: expected one of {', '.join(KINDS)} at the root of a recipe, {got}")
    try:
        section = KINDS[kind](raw)
    except ValueError as error:
        raise ConfigError(f"{path}:\n  {error}") from error
    return validate(section, raw, str(path))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """An online recipe."""
    return _expect(RunConfig, load_recipe(path, overrides), path)


def load_training_config(path: Path, overrides: Sequence[str] = ()) -> TrainingSection:
    """A recipe of `isrl train`, online or offline."""
    return _expect(TrainingSection, load_recipe(path, overrides), path)


def load_pretrain_config(path: Path, overrides: Sequence[str] = ()) -> PretrainSection:
    """A recipe of `isrl pretrain`; its `type` says which preset it makes."""
    return _expect(PretrainSection, load_recipe(path, overrides), path)


def _expect(wanted: type[Model], recipe: Section, path: Path) -> Model:
    if not isinstance(recipe, wanted):
        kind = recipe.model_dump()["kind"]
        command = {"online": "train", "offline": "train"}.get(kind, kind)
        raise ConfigError(f"{path}: expected a recipe of another kind, got kind '{kind}'; run it with isrl {command}")
    return recipe


def read_recipe(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping in `path` with overrides applied, not yet validated."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; recipes are in configs/")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    for override in overrides:
        apply_override(raw, override)
    return raw


def validate(model: type[Model], raw: dict[str, Any], source: str) -> Model:
    """Check a mapping against a section; the error message starts with `source`."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(detail, model, raw) for detail in error.errors()]
        raise ConfigError("\n".join([f"{source}:", *lines])) from error


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML; `load_recipe` reads it back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


@dataclass(frozen=True)
class _Place:
    """A section of a recipe: its class and, if chosen by name, the union and the path to it."""

    section: type[Section]
    union: OpenUnion | None = None
    path: tuple[str | int, ...] = ()

    def hint(self, key: str, raw: Any) -> str:
        """What to do about a key that the section does not have."""
        if self.union is not None:
            readers = [name for name in self.union.registry if key in self.union.member(name).model_fields]
            if readers:
                words = [str(part) for part in self.path if isinstance(part, str)][-1:]
                chosen = raw.get(self.union.key, self.union.default)
                what = " ".join([*words, self.union.key])
                return f" for {what} '{chosen}'; read by {', '.join(readers)}"
        kinds = [kind for kind, choose in KINDS.items() if key in choose({}).model_fields]
        if not self.path and kinds:
            return f" for kind '{raw.get('kind')}'; read by {', '.join(kinds)}"
        nearest = difflib.get_close_matches(key, self.section.model_fields, n=1)
        return f"; did you mean '{nearest[0]}'?" if nearest else "; remove it"


def _explain(error: Any, model: type[Section], raw: Any) -> str:
    # a tagged union puts the tag of the alternative, written <tag>, into the path
    loc = [part for part in error["loc"] if not str(part).startswith("<")]
    where = ".".join(map(str, loc)) or "config"
    if error["type"] == "extra_forbidden":
        place, found = _place(model, raw, loc[:-1])
        return f"  {where}: unknown key" + ("; remove it" if place is None else place.hint(str(loc[-1]), found))
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    got = "" if isinstance(value, dict | list) or error["type"] == "value_error" else f" (got {value!r})"
    return f"  {where}: {message}{got}"


def _place(model: type[Section], raw: Any, loc: Sequence[str | int]) -> tuple[_Place | None, Any]:
    """The section at `loc`, which for a union depends on the raw value there, and that raw value."""
    place: _Place | None = _Place(model, PRETRAINS if issubclass(model, PretrainSection) else None)
    marks: Sequence[Any] = ()
    annotation: Any = model
    for depth, part in enumerate(loc, start=1):
        raw = raw[part]
        if not isinstance(part, int):
            if place is None or part not in place.section.model_fields:
                return None, raw
            field = place.section.model_fields[part]
            marks, annotation = field.metadata, field.annotation
        place = _chosen(annotation, marks, raw, tuple(loc[:depth]))
    return place, raw


def _chosen(annotation: Any, marks: Sequence[Any], raw: Any, path: tuple[str | int, ...]) -> _Place | None:
    for mark in (*marks, *getattr(annotation, "__metadata__", ())):
        if isinstance(mark, OpenUnion) and isinstance(raw, dict):
            return _Place(mark.member(raw.get(mark.key, mark.default)), mark, path)
    if isinstance(annotation, type):
        return _Place(annotation, None, path) if issubclass(annotation, Section) else None
    found = (_chosen(inner, (), raw, path) for inner in get_args(annotation))
    return next((place for place in found if place is not None), None)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted `a.b.0.c=value` (the value is YAML) in a mapping that is not validated yet."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}': expected key=value, for example train.steps=10")
    *parents, last = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: depth + 1]), create=True)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML: {error}") from error
    if isinstance(node, list):
        _child(node, last, key, create=False)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override '{override}': '{'.'.join(parents)}' is {node!r}, which has no key '{last}'")


def _child(node: Any, part: str, where: str, *, create: bool) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"override '{where}': expected an index below {len(node)}, got '{part}'")
        return node[int(part)]
    if isinstance(node, dict):
        if create and node.get(part) is None:
            node[part] = {}
        return node.get(part)
    raise ConfigError(f"override '{where}': {node!r} has no key '{part}'")
