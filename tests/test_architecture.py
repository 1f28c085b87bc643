"""Borders and sizes that the architecture page promises, read from the source text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rl", "rewards", "learner", "actors")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONG: dict[str, str] = {}
"""File or `file:function` -> why it may be longer than 300 or 50 lines."""

HOMES = {
    "ray": ("actors",),
    "deepspeed": ("learner",),
    "pyiqa": ("rewards",),
    "wandb": ("actors",),
    "aiohttp": ("actors",),
}
"""Package -> the only top-level folders that may import it."""
LAYERS = {"rl": ("rl",), "rewards": ("rl", "rewards"), "learner": ("rl", "learner"), "actors": PACKAGES}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def test_the_packages_are_found() -> None:
    assert len(FILES) > 30
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_is_short_and_polite(path: Path) -> None:
    """At most 300 lines; functions at most 50; a module docstring where there is code; no catch-all handler."""
    text, tree = path.read_text(encoding="utf-8"), parsed(path)
    lines = text.count("\n")
    assert lines <= 300 or relative(path) in LONG, f"{lines} lines"
    if tree.body:
        assert ast.get_docstring(tree), "a file with code says at its top what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            name = f"{relative(path)}:{node.name}"
            assert length <= 50 or name in LONG, f"{node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            broad = node.type is None or {"Exception", "BaseException"} & set(caught.strip("()").split(", "))
            assert not broad, f"line {node.lineno} catches {caught}: name what may go wrong"


@pytest.mark.parametrize(
    "path", [path for path in FILES if relative(path).startswith(("rl/", "rewards/"))], ids=relative
)
def test_science_and_rewards_do_not_print(path: Path) -> None:
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert lines == [], "return it, raise it or log it"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_flow_one_way(path: Path) -> None:
    """actors -> {learner | rewards} -> rl; ray, deepspeed, pyiqa and wandb at home only; the configuration is light."""
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported(parsed(path))}
    assert tops & set(PACKAGES) <= set(LAYERS[package])
    for name, homes in HOMES.items():
        assert name not in tops or package in homes, f"{name} belongs to {homes}"
    if relative(path).startswith("rl/config/"):
        assert not tops & {"torch", "numpy", "diffusers", "peft"}


def test_exceptions_still_exist() -> None:
    """A reason in the table is of a file that is there."""
    assert all((ROOT / name.split(":")[0]).is_file() and reason for name, reason in LONG.items())
