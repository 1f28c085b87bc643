"""One checkpoint on disk: whole or absent, and every byte of it checked.

    checkpoints/step-000050/{manifest.json, controller.json, learner.json, *.safetensors, rng-<rank>.json}

Writing makes a folder of another name, syncs and reads back every file, and renames the folder at the end. Whatever
ends the process before that leaves the older checkpoints as they are.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from learner.state import StateFiles, file_digest
from rl.errors import InputError
from rl.types import U8

CHECKPOINTS_DIR = "checkpoints"
MANIFEST = "manifest.json"
FORMAT = 1
_PREFIX, _PARTIAL = "step-", "partial-"
_CHUNK = 1 << 24


class NotWhole(InputError):
    """A checkpoint lacks a file, or a file is not what was written."""


class NotSaved(RuntimeError):
    """A checkpoint could not be written; the older ones are whole."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step; unfinished ones have another name."""
    found = checkpoints_in(folder)
    return found[-1] if found else None


def checkpoints_in(folder: Path) -> list[Path]:
    """In the order of their steps."""
    found = (path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit())
    return sorted(found, key=step_of)


def checkpoint_of(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step:06d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def write_checkpoint(checkpoint: Path, files: StateFiles) -> None:
    """Write all files beside, verify them, rename.

    Raises:
        NotSaved: the disk is full, or refuses for another reason; nothing of it is left.
    """
    partial = checkpoint.with_name(f"{_PARTIAL}{checkpoint.name}")
    table = {name: (len(content), files.digests[name]) for name, content in files.contents.items()}
    try:
        discard_unfinished(checkpoint.parent)
        partial.mkdir(parents=True)
        for name, content in {**files.contents, MANIFEST: _manifest(table)}.items():
            _write(partial / name, content)
        for name, entry in table.items():
            _read_verified(partial / name, *entry)
        _sync(partial)
        partial.rename(checkpoint)
        _sync(checkpoint.parent)
    except OSError as error:
        raise NotSaved(_what_failed(checkpoint, partial, files, error)) from error
    except _Differs as error:
        raise NotSaved(f"{checkpoint} was not saved: read back, {error}; see the disk's health") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_checkpoint(checkpoint: Path) -> StateFiles:
    """Every file, compared with its digest.

    Raises:
        NotWhole: names the file, and what was expected and found.
    """
    try:
        table = _read_manifest(checkpoint / MANIFEST)
        contents = {name: _read_verified(checkpoint / name, *entry) for name, entry in table.items()}
    except _Differs as error:
        raise NotWhole(f"{error}; {_instead(checkpoint)}") from error
    return StateFiles(contents, {name: digest for name, (_, digest) in table.items()})


def remove_checkpoint(checkpoint: Path) -> None:
    """Renamed first, so that one that is half removed is none."""
    gone = checkpoint.with_name(f"{_PARTIAL}{checkpoint.name}")
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def discard_unfinished(folder: Path) -> None:
    """What killed processes left."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial)


def _write(path: Path, content: U8) -> None:
    view = content.data
    with path.open("xb") as file:
        for start in range(0, len(view), _CHUNK):
            file.write(view[start : start + _CHUNK])
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in it last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Differs(ValueError):
    """A file is not what was written."""


def _read_verified(path: Path, size: int, digest: str) -> U8:
    content = _read(path)
    if (got := file_digest(content)) != digest:
        raise _Differs(f"{path}: expected {size} bytes with digest {digest}, got {len(content)} bytes with {got}")
    return content


def _read(path: Path) -> U8:
    try:
        return np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise _Differs(f"{path}: no such file") from error


def _manifest(table: Mapping[str, tuple[int, str]]) -> U8:
    """Ends with the digest of the rest, so that a change in the manifest itself is noticed too."""
    facts = {"format": FORMAT, "files": table}
    digest = file_digest(_json(facts))
    return _json({**facts, "digest": digest})


def _json(facts: Mapping[str, object]) -> U8:
    return np.frombuffer(json.dumps(facts).encode(), np.uint8)


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    content = _read(path)
    try:
        facts = json.loads(content.tobytes())
        table = {str(name): (int(size), str(digest)) for name, (size, digest) in facts["files"].items()}
        written_as = facts["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Differs(f"{path}: expected a list of files, got something else ({error!r})") from error
    if written_as != FORMAT:
        raise _Differs(f"{path}: expected format {FORMAT}, got {written_as}, which another version of isrl wrote")
    if not np.array_equal(_manifest(table), content):
        raise _Differs(f"{path}: expected a list of files with the digest of the list, got another digest")
    return table


def _instead(checkpoint: Path) -> str:
    older = [path.name for path in checkpoints_in(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    if older:
        return f"to resume from {older[-1]}, remove {checkpoint}"
    return "no older checkpoint is there: start a new run with another run.dir"


def _what_failed(checkpoint: Path, partial: Path, files: StateFiles, error: OSError) -> str:
    folder = next(path for path in (checkpoint.parent, *checkpoint.parent.absolute().parents) if path.is_dir())
    expected = sum(len(content) for content in files.contents.values())
    got = sum(path.stat().st_size for path in partial.glob("*"))
    free = shutil.disk_usage(folder).free
    return (
        f"{checkpoint} was not saved: expected to write {expected} bytes, {error.strerror or error} after {got}; "
        f"{free} bytes are free in {folder}, make room there"
    )
