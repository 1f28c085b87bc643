"""Where photographs come from, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from rl.data.photos import SKIMAGE_PHOTOS, Photos, check_sources, list_images, load_photos, load_rgb


def gradient(height: int = 4, width: int = 6) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_bundled_photographs_are_scikit_images_own() -> None:
    photos = load_photos(["skimage:coffee", "skimage:camera", "skimage:hubble"])
    assert list(photos) == ["skimage:coffee", "skimage:camera", "skimage:hubble"]
    np.testing.assert_array_equal(photos["skimage:coffee"], skimage.data.coffee())
    np.testing.assert_array_equal(photos["skimage:hubble"], skimage.data.hubble_deep_field())
    for channel in range(3):
        np.testing.assert_array_equal(photos["skimage:camera"][..., channel], skimage.data.camera())


@pytest.mark.parametrize("name", sorted(SKIMAGE_PHOTOS))
def test_every_bundled_name_loads_without_a_download(name: str) -> None:
    photo = load_photos([f"skimage:{name}"])[f"skimage:{name}"]
    assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3
    assert min(photo.shape[:2]) >= 256 and photo.std() > 10


def test_an_unknown_bundled_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'skimage:lena': scikit-image carries astronaut, brick, .*rocket"):
        check_sources(["skimage:camera", "skimage:lena"])


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        check_sources([str(tmp_path / "nowhere")])
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"expected a folder with images \(.bmp, .jpeg, .*found none"):
        check_sources([str(tmp_path)])


def test_folders_are_read_in_name_order_and_other_files_ignored(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c.bmp"):
        Image.fromarray(gradient()).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("x")
    assert [path.name for path in list_images(tmp_path)] == ["a.PNG", "b.png", "c.bmp"]
    assert list_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    assert list(load_photos([str(tmp_path / "c.bmp"), str(tmp_path / "b.png")])) == ["c", "b"]


def test_grey_is_repeated_and_alpha_dropped(tmp_path: Path) -> None:
    rgb = gradient()
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([rgb, np.full((4, 6), 7, np.uint8)])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(load_rgb(tmp_path / "grey.png"), np.repeat(rgb[..., :1], 3, axis=2))
    np.testing.assert_array_equal(load_rgb(tmp_path / "alpha.png"), rgb)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deeper_than_8_bits_is_refused_by_name(tmp_path: Path, dtype: type) -> None:
    file = tmp_path / "deep.tif"
    Image.fromarray(np.arange(24, dtype=dtype).reshape(4, 6)).save(file)
    with pytest.raises(ValueError, match=r"deep.tif: expected an 8-bit image, got mode .*convert it to 8-bit RGB"):
        load_rgb(file)


def test_files_are_decoded_when_asked_for_and_kept_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two pictures of 72 bytes: the least recently used one is decoded again."""
    files = {name: tmp_path / f"{name}.png" for name in "abc"}
    for k, file in enumerate(files.values()):
        Image.fromarray(gradient() + k).save(file)
    read: list[str] = []
    monkeypatch.setattr("rl.data.photos.load_rgb", lambda path: read.append(path.stem) or load_rgb(path))
    photos = Photos(files, cache_bytes=150)
    assert [photos.size(name) for name in photos] == [(4, 6)] * 3 and read == []
    for name in ("a", "b", "a", "c", "a", "b"):
        np.testing.assert_array_equal(photos[name], gradient() + "abc".index(name))
    assert read == ["a", "b", "c", "b"]
    with pytest.raises(ValueError, match="read-only"):
        photos["a"][0] = 0


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    photos = load_photos([str(tmp_path / "torn.png"), str(tmp_path / "text.png")])
    with pytest.raises(ValueError, match="torn.png: expected an image, Pillow cannot read it"):
        photos["torn"]
    with pytest.raises(ValueError, match="text.png: expected an image, Pillow cannot read it"):
        photos.size("text")
