"""A user's own Python file: checked for syntax before the run, imported by the server.

The file runs with the run's permissions. Left out: options (write constants into the file), and imports of neighbouring
files, which need PYTHONPATH.
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.base import ServerError, naming
from rl.types import U8


def signature(function: str, arguments: Sequence[str]) -> str:
    """How a user's file must define `function`."""
    return f"def {function}({', '.join(arguments)})"


def check_user_file(path: Path, function: str, arguments: Sequence[str]) -> ast.Module:
    """The syntax tree of a user's file, without running it.

    Raises:
        ValueError: it is missing, is not Python, or has no top-level `function` that takes `arguments`.
    """
    if not path.is_file():
        raise ValueError(f"file '{path}' does not exist (looked from {Path.cwd()}); give the path of a Python file")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    expected = signature(function, arguments)
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not defined:
        raise ValueError(f"{path} has no top-level {function}(); expected `{expected}`")
    accepted = defined[-1].args
    got = [argument.arg for argument in (*accepted.posonlyargs, *accepted.args)]
    if len(got) < len(arguments) and accepted.vararg is None:
        raise ValueError(f"{path}, line {defined[-1].lineno}: expected `{expected}`, got `{signature(function, got)}`")
    return tree


def user_module(file: str, function: str, arguments: Sequence[str], name: str, error: type[ServerError]) -> Any:
    """A user's file as an imported module with a callable `function`.

    Raises:
        error: with `name`: the file is missing, fails on import, or has no such function.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise error(name, f"file {path} does not exist")
    key = f"isrl_{error.kind}_{name.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise error(name, f"{path}: expected a Python file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look their module up there
    with naming(name, f"importing {path}", error):
        spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise error(name, f"{path} has no {function}(); expected `{signature(function, arguments)}`")
    return module


def read_only(array: U8) -> U8:
    """A view through which a user's file cannot write."""
    view = array.view()
    view.flags.writeable = False
    return view
