"""pyiqa's own source text, read without importing pyiqa, which would import torch.

`default_model_configs.py` has no dependencies and is executed alone; architecture files are parsed. Both are expected
where pyiqa 0.1.14 to 0.1.16 have them.
"""

import ast
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

WEIGHTS_REPO = "chaofengc/IQA-PyTorch-Weights"


@dataclass(frozen=True)
class Architecture:
    """The class that a metric is an instance of."""

    arguments: Mapping[str, Any]
    """Of its constructor, with their defaults; None stands for a default that is not a literal."""
    open_ended: bool
    """The constructor takes extra arguments by `**`."""
    tables: Mapping[str, Mapping[str, str]]
    """The dict literals in its file with strings as values, by name; weights are URLs there."""


@cache
def default_configs() -> Mapping[str, Any]:
    """Metric -> pyiqa's settings for it.

    Raises:
        ValueError: pyiqa is not installed, or has no such file.
    """
    path = _folder() / "default_model_configs.py"
    spec = importlib.util.spec_from_file_location("_isrl_pyiqa_configs", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"pyiqa has no {path}; isrl reads its metric names there (pyiqa 0.1.14 to 0.1.16 have it)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.DEFAULT_CONFIGS)


@cache
def architecture(kind: str) -> Architecture | None:
    """The class `kind` in `archs/`; None if no file there defines it."""
    defines = re.compile(rf"^class {re.escape(kind)}\(", re.MULTILINE)
    for path in sorted((_folder() / "archs").glob("*_arch.py")):
        text = path.read_text(encoding="utf-8")
        if defines.search(text):
            return _architecture(ast.parse(text), kind)
    return None


@cache
def table(file: str, name: str) -> Mapping[str, str]:
    """The dict literal `name` in one file of `archs/`; empty if it is not there."""
    path = _folder() / "archs" / file
    return _tables(ast.parse(path.read_text(encoding="utf-8"))).get(name, {}) if path.is_file() else {}


def hub_url(repo: str, file: str | None = None) -> str:
    """URL of a Hugging Face repository, or of a file in it, at the endpoint set by `HF_ENDPOINT`."""
    base = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{repo}"
    return base if file is None else f"{base}/resolve/main/{quote(file)}"


def _folder() -> Path:
    package = importlib.util.find_spec("pyiqa")
    if package is None or not package.submodule_search_locations:
        raise ValueError("pyiqa is not installed; `pip install 'pyiqa>=0.1.14'`, or use another reward type")
    return Path(package.submodule_search_locations[0])


def _architecture(tree: ast.Module, kind: str) -> Architecture:
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    init = next((node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    if init is None:
        return Architecture({}, False, _tables(tree))
    names = [argument.arg for argument in init.args[1:]]
    defaults = [None] * (len(names) - len(init.defaults)) + [_literal(node) for node in init.defaults]
    return Architecture(dict(zip(names, defaults, strict=True)), init.kwarg is not None, _tables(tree))


def _tables(tree: ast.Module) -> dict[str, dict[str, str]]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict):
            items = zip(node.value.keys, node.value.values, strict=True)
            texts = {_literal(key): _url(value) for key, value in items if key is not None}
            found[node.targets[0].id] = {str(key): url for key, url in texts.items() if url is not None}
    return found


def _url(node: ast.expr) -> str | None:
    """A string, or `get_url_from_name(file)`, which means a file in pyiqa's weights repository."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_url_from_name":
        file = _literal([*node.args, *(keyword.value for keyword in node.keywords)][0])
        return hub_url(WEIGHTS_REPO, file) if isinstance(file, str) else None
    value = _literal(node)
    return value if isinstance(value, str) else None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
