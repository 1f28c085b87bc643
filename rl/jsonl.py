"""JSON lines on disk that survive a killed process: a line counts once its newline is written."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Record = Mapping[str, object]


def append(path: Path, records: Iterable[Record]) -> None:
    """Append one line per record; numbers must be finite because strict JSON has no NaN."""
    lines = "".join(json.dumps(record, allow_nan=False, separators=(", ", ": ")) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def cut_torn_line(path: Path) -> int:
    """Drop the unfinished last line that a killed writer left; returns the bytes dropped. Call before appending."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    torn = len(content) - (content.rfind(b"\n") + 1)
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(content) - torn)
    return torn


def read(path: Path) -> Iterator[dict[str, object]]:
    """The records of a file; an unfinished last line is not a record yet."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: expected one JSON object per line, got {line[:80]!r}") from error
        if not isinstance(record, dict):
            raise TypeError(f"{path}:{number}: expected a JSON object, got {line[:80]!r}")
        yield record
