"""YAML plus dotted overrides in, a checked `RunConfig` out; every mistake is one readable line."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rl.config.base import Section
from rl.config.run import RunConfig
from rl.errors import InputError

Model = TypeVar("Model", bound=Section)


class ConfigError(InputError):
    """A configuration that cannot run; the message says what was expected, what came and what to write."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, apply `a.b.0.c=value` overrides in order (values are YAML), validate."""
    return validate(RunConfig, read_recipe(path, overrides), str(path))


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
        _apply(raw, override)
    return raw


def validate(model: type[Model], raw: dict[str, Any], source: str) -> Model:
    """Check a mapping against a section; `source` begins the message."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(detail, model) for detail in error.errors()]
        raise ConfigError("\n".join([f"{source}:", *lines])) from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(error: Any, model: type[Section]) -> str:
    # a tagged union puts the tag of the alternative, written <tag>, into the path
    where = ".".join(part for part in map(str, error["loc"]) if not part.startswith("<")) or "config"
    if error["type"] == "extra_forbidden":
        hint = difflib.get_close_matches(str(error["loc"][-1]), _field_names(error["loc"][:-1], model), n=1)
        return f"  {where}: unknown key" + (f"; did you mean '{hint[0]}'?" if hint else "; remove it")
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    got = "" if isinstance(value, dict | list) or error["type"] == "value_error" else f" (got {value!r})"
    return f"  {where}: {message}{got}"


def _field_names(loc: tuple[str | int, ...], model: type[Section]) -> list[str]:
    schema: dict[str, Any] = model.model_json_schema()
    node = schema
    for part in loc:
        node = _resolve(node, schema)
        if isinstance(part, int):
            node = node.get("items", {})
        elif not part.startswith("<"):
            node = node.get("properties", {}).get(part, {})
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in [node, *node.get("allOf", []), *node.get("anyOf", []), *node.get("oneOf", [])]:
        if "$ref" in option:
            name = option["$ref"].rsplit("/", 1)[1]
            found: dict[str, Any] = schema["$defs"][name]
            return found
    return node


def _apply(raw: dict[str, Any], override: str) -> None:
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
