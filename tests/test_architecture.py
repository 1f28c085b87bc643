"""Borders and sizes that the architecture page promises, read from the source text."""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from setuptools import find_packages

from rl.config.advantage import AGGREGATIONS
from rl.config.objective import OBJECTIVES
from rl.config.open_union import load
from rl.config.policy import POLICIES

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


@cache
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
    """A new folder needs an `__init__.py` and no list; nothing else of the repository is installed."""
    assert len(FILES) > 30
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    folders = {relative(path.parent).replace("/", ".") for path in FILES}
    assert set(find_packages(str(ROOT), **found)) == folders


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


def test_there_is_no_circle_of_imports() -> None:
    """Those inside functions and those for types alone included: a circle is one room with a wall through it."""
    modules = {_module(path): path for path in FILES}
    graph = {name: _imported_modules(name, path, modules) for name, path in modules.items()}
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert graph == {}, "modules on a circle, or that lead to one"


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported_modules(own: str, path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Modules of ours; `from package import module` leads to the module."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in inner.values()}
    return (found & set(modules)) - {own}


REGISTRIES = (POLICIES, OBJECTIVES, AGGREGATIONS)
KINDS = {"Policy", "PolicySection", "Objective", "ObjectiveSection", "AdvantageSection"}
PRETRAINING = ("learner/pretraining/", "rl/config/pretrain.py", "actors/plan_pretrain.py")


def _name(node: ast.AST) -> str:
    """`Class` of the expressions Class, module.Class and Class[...]."""
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def _bases() -> dict[str, set[str]]:
    """Class -> the classes that it extends, by name, over all packages."""
    nodes = [node for path in FILES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    return {node.name: {_name(base) for base in node.bases} for node in nodes}


def _chain(cls: str) -> set[str]:
    """A class with everything that it extends."""
    return {cls}.union(*(_chain(base) for base in _bases().get(cls, ()) if base != cls))


@cache
def _rooms() -> dict[str, set[str]]:
    """Name or class of a policy, an objective or an aggregation -> the files and folders that may speak of it."""
    rooms: dict[str, set[str]] = {cls: set() for cls in _bases() if _chain(cls) & KINDS and cls not in KINDS}
    for name, reference in (entry for registry in REGISTRIES for entry in registry.items()):
        references = (reference, getattr(load(reference), "builder", reference))
        files = [f"{ref.split(':')[0].replace('.', '/')}.py" for ref in references]
        own = {file.rpartition("/")[0] + "/" if file.startswith("rl/policies/") else file for file in files}
        for word in {name}.union(*(_chain(ref.split(":")[1]) & set(rooms) for ref in references)):
            rooms.setdefault(word, set()).update(own)
    for path in FILES:
        defined = {node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)}
        for cls in defined & set(rooms):
            rooms[cls].add(relative(path))
    return rooms


def _branches(tree: ast.Module, *, tables: bool) -> Iterator[tuple[int, str]]:
    """(line, word) of what a comparison, `isinstance`, a pattern or a table of cases looks for; of a module's own
    tables, where a registry is one, only if `tables`."""
    of_modules = {
        id(inner) for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and _name(node.func) in ("isinstance", "issubclass"):
            parts = [*node.args[1:]]
        elif isinstance(node, ast.Dict) and (tables or id(node) not in of_modules):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern]
        for inner in (inner for part in parts for inner in ast.walk(part)):
            word = inner.value if isinstance(inner, ast.Constant) else _name(inner)
            if isinstance(word, str):
                yield getattr(inner, "lineno", 0), word


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_code_branches_on_the_type_or_the_name_of_an_algorithm_or_a_model(path: Path) -> None:
    """The system asks what a section declares. Spared: the registries, a thing's own room, and pretraining."""
    if relative(path).startswith(PRETRAINING):
        return
    rooms = _rooms()
    branches = _branches(parsed(path), tables=not relative(path).startswith("rl/config/"))
    found = [
        f"line {line}: {word}"
        for line, word in branches
        if word in rooms and not any(relative(path).startswith(own) for own in rooms[word])
    ]
    assert found == [], "ask the section's declaration instead, or add one"


def test_a_branch_is_seen() -> None:
    code = """
TABLE = {"gdpo": 1}
isinstance(x, rl.config.objective.NFTSection)
x.type != "nft" or x.type in ("grpo", y)
{"naosd": f}[x.type]
match x:
    case "flux2sr": pass
    case FlowPolicy(): pass
"""
    words = [word for _, word in _branches(ast.parse(code), tables=True) if word in _rooms()]
    assert sorted(words) == ["FlowPolicy", "NFTSection", "flux2sr", "gdpo", "grpo", "naosd", "nft"]
    assert "gdpo" not in [word for _, word in _branches(ast.parse(code), tables=False)]


def test_exceptions_still_exist() -> None:
    """A reason in the table is of a file that is there."""
    assert all((ROOT / name.split(":")[0]).is_file() and reason for name, reason in LONG.items())
