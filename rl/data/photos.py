"""Photographs as uint8 RGB arrays: bundled with scikit-image as `skimage:<name>`, or from a file or folder."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from rl.config.base import SKIMAGE
from rl.errors import InputError, MissingInput
from rl.types import U8

CACHE_BYTES = 1 << 30

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_SKIMAGE_FUNCTIONS = {"hubble": "hubble_deep_field", "ihc": "immunohistochemistry"}
SKIMAGE_PHOTOS = frozenset(
    [
        "astronaut",
        "brick",
        "camera",
        "chelsea",
        "coffee",
        "grass",
        "gravel",
        "hubble",
        "ihc",
        "motorcycle_left",
        "motorcycle_right",
        "retina",
        "rocket",
    ]
)
"""The photographs inside scikit-image's wheel; its others are downloads."""


def load_rgb(path: Path) -> U8:
    """One image file as `[H, W, 3]` uint8; grey is repeated, alpha dropped, 16-bit files refused."""
    with _opened(path) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An 8-bit image, pixels not yet read; if Pillow cannot read it, the error names the file."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                raise InputError(f"{path}: expected an 8-bit image, got mode {image.mode}; convert it to 8-bit RGB")
            yield image
    except OSError as error:
        raise InputError(f"{path}: expected an image, Pillow cannot read it: {error}") from error


def list_images(path: Path) -> list[Path]:
    """The image files of a folder in name order, or the file itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingInput(f"{path}: no such file or folder")
    files = sorted(p for p in path.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise MissingInput(f"{path}: expected a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    return files


class Photos(Mapping[str, U8]):
    """Name -> `[H, W, 3]` uint8, read-only, in the order given. Files are decoded on demand; the most recently used
    stay in memory up to `cache_bytes`, so a data set may be larger than memory."""

    def __init__(self, files: Mapping[str, Path | None], cache_bytes: int = CACHE_BYTES) -> None:
        self._files = dict(files)
        self._cache: OrderedDict[str, U8] = OrderedDict()
        self._free = cache_bytes

    def __getitem__(self, name: str) -> U8:
        if name not in self._cache:
            photo = self._read(name)
            photo.flags.writeable = False
            self._cache[name] = photo
            self._free -= photo.nbytes
            while self._free < 0 and len(self._cache) > 1:
                self._free += self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(name)
        return self._cache[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def size(self, name: str) -> tuple[int, int]:
        """(height, width) from the file's header."""
        path = self._files[name]
        if path is None:
            height, width = self[name].shape[:2]
            return height, width
        with _opened(path) as image:
            return image.height, image.width

    def _read(self, name: str) -> U8:
        path = self._files[name]
        return np.array(_bundled(name.removeprefix(SKIMAGE)) if path is None else load_rgb(path))


def load_photos(sources: Sequence[str]) -> Photos:
    """The photographs of `skimage:<name>`, files and folders, in the order given.

    A file's name is its stem, or its path if another file already has the stem (0001.png in two data sets).
    """
    check_sources(sources)
    files: dict[str, Path | None] = {}
    for source in sources:
        if source.startswith(SKIMAGE):
            files[source] = None
        else:
            for path in list_images(Path(source).expanduser()):
                files[str(path) if path.stem in files else path.stem] = path
    return Photos(files)


def check_sources(sources: Sequence[str]) -> None:
    """Refuse sources that do not exist, without reading any pixels."""
    for source in sources:
        if source.startswith(SKIMAGE):
            name = source.removeprefix(SKIMAGE)
            if name not in SKIMAGE_PHOTOS:
                raise InputError(f"'{source}': scikit-image carries {', '.join(sorted(SKIMAGE_PHOTOS))}")
        else:
            list_images(Path(source).expanduser())


def _bundled(name: str) -> U8:
    import skimage.data

    if name.startswith("motorcycle"):
        left, right, _disparity = skimage.data.stereo_motorcycle()
        photo = right if name.endswith("right") else left
    else:
        photo = getattr(skimage.data, _SKIMAGE_FUNCTIONS.get(name, name))()
    photo = np.asarray(photo)
    return np.repeat(photo[..., None], 3, axis=2) if photo.ndim == 2 else photo[..., :3]
