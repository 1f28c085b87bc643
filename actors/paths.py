"""Files and folders of a command on this machine: a recipe's inputs, found by the marks on its fields
(`rl.config.base.InputPath`), and whether a folder is writable."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rl.config.base import SKIMAGE, InputPath, Section
from rl.errors import InputError


def inputs(section: Section, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, path or `skimage:<name>`) of every input in all sections, including user-defined ones.

    Values that may also be a name or a URL are left to their section.
    """
    for name, field in type(section).model_fields.items():
        mark = next((m for m in field.metadata if isinstance(m, InputPath)), None)
        yield from _under(getattr(section, name), f"{where}{name}", mark)


def is_missing(path: str) -> bool:
    """Whether an input is not on this machine."""
    return not path.startswith(SKIMAGE) and not Path(path).expanduser().exists()


def refuse_unwritable(what: str, folder: Path) -> None:
    """Refuse a folder that cannot be created or written, by writing into it or its nearest existing parent.

    Raises:
        InputError: starts with `what` and says why.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"{what} {folder}: cannot be written: {error.strerror}; name another folder") from error


def _under(value: Any, key: str, mark: InputPath | None) -> Iterator[tuple[str, str]]:
    if isinstance(value, Section):
        yield from inputs(value, f"{key}.")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _under(item, f"{key}.{name}", mark)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _under(item, key if mark else f"{key}.{i}", mark)
    elif isinstance(value, str) and mark is not None and not mark.may_be_name:
        yield key, value
