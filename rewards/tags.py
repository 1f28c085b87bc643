"""The list of tags that CLIP chooses from: a text file with one tag per line. Torch-free."""

from collections import Counter
from pathlib import Path


def read_tags(path: Path) -> tuple[str, ...]:
    """The tags in the file's order; blank lines and surrounding spaces are no tags.

    Raises:
        ValueError: no such file, no tag in it, or a tag twice (it would share its probability with itself).
    """
    if not path.is_file():
        raise ValueError(f"tags: file '{path}' does not exist; give the path of a text file with one tag per line")
    tags = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not tags:
        raise ValueError(f"tags: expected one tag per line in {path}, found none")
    twice = [tag for tag, count in Counter(tags).items() if count > 1]
    if twice:
        raise ValueError(f"tags: expected each tag once in {path}, found more of {twice[:5]}")
    return tags
