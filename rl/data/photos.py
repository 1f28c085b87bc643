"""Photographs as uint8 RGB arrays: scikit-image's bundled ones by `skimage:<name>`, or a file or folder by path."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rl.config.data import SKIMAGE
from rl.errors import InputError, MissingInput

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
"""The photographs that come inside scikit-image's wheel; its others are downloads."""


def load_rgb(path: Path) -> NDArray[np.uint8]:
    """One image file as `[H, W, 3]` uint8; grey is repeated, alpha dropped, 16-bit refused by name."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                raise InputError(f"{path}: expected an 8-bit image, got mode {image.mode}; convert it to 8-bit RGB")
            return np.asarray(image.convert("RGB"))
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


def load_photos(sources: list[str]) -> dict[str, NDArray[np.uint8]]:
    """Name -> `[H, W, 3]` uint8, in the order given; each source is `skimage:<name>`, a file, or a folder.

    A file's name is its stem, or its path where another file has the stem already (0001.png of two data sets).
    """
    check_sources(sources)
    photos: dict[str, NDArray[np.uint8]] = {}
    for source in sources:
        if source.startswith(SKIMAGE):
            photos[source] = _bundled(source.removeprefix(SKIMAGE))
        else:
            for path in list_images(Path(source).expanduser()):
                photos[str(path) if path.stem in photos else path.stem] = load_rgb(path)
    return photos


def check_sources(sources: list[str]) -> None:
    """Refuse a source that names nothing, without reading any pixels."""
    for source in sources:
        if source.startswith(SKIMAGE):
            name = source.removeprefix(SKIMAGE)
            if name not in SKIMAGE_PHOTOS:
                raise InputError(f"'{source}': scikit-image carries {', '.join(sorted(SKIMAGE_PHOTOS))}")
        else:
            list_images(Path(source).expanduser())


def _bundled(name: str) -> NDArray[np.uint8]:
    import skimage.data

    if name.startswith("motorcycle"):
        left, right, _disparity = skimage.data.stereo_motorcycle()
        photo = right if name.endswith("right") else left
    else:
        photo = getattr(skimage.data, _SKIMAGE_FUNCTIONS.get(name, name))()
    photo = np.asarray(photo)
    return np.repeat(photo[..., None], 3, axis=2) if photo.ndim == 2 else photo[..., :3]
