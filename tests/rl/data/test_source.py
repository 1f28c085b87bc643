"""The stream of tasks: a pure function of (config, seed, ordinal), every photograph once an epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.config.data import DATA_UNION
from rl.config.degradation import DEGRADATIONS
from rl.data.degradation import target
from rl.data.source import TaskSource
from rl.types import SRTask

PHOTOS = 5


def save(path: Path, height: int, width: int, seed: int) -> np.ndarray:
    """Every pixel of all pictures is different, so that a crop says where it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes = seed * 65536 + np.arange(height * width).reshape(height, width)
    pixels = np.stack([codes // 65536, codes // 256 % 256, codes % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(PHOTOS):
        save(tmp_path / "hr" / f"p{k}.png", 64 + 4 * k, 80, k)
    return tmp_path / "hr"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """LR pictures of 20 x 24 and HR pictures whose 4x4 blocks all hold their LR pixel."""
    for k in range(3):
        lr = save(tmp_path / "pairs" / "lr" / f"p{k}.png", 20, 24, k)
        (tmp_path / "pairs" / "hr").mkdir(exist_ok=True)
        Image.fromarray(lr.repeat(4, axis=0).repeat(4, axis=1)).save(tmp_path / "pairs" / "hr" / f"p{k}.png")
    return tmp_path / "pairs"


def source(seed: int = 0, **settings: object) -> TaskSource:
    return TaskSource(DATA_UNION.validate(settings), seed)


def fingerprint(task: SRTask) -> tuple[object, ...]:
    hr = None if task.hr is None else task.hr.tobytes()
    return task.ordinal, task.lr_id, task.lr.tobytes(), hr, task.scale, task.seed


def test_a_task_is_a_function_of_seed_and_ordinal(folder: Path) -> None:
    """Any process, any order, after any resume: the same bytes. Another seed: another stream."""
    settings = {"path": [str(folder)], "crop": 32}
    forwards = source(3, **settings)
    tasks = [fingerprint(forwards.task(ordinal)) for ordinal in range(12)]
    backwards = source(3, **settings)
    assert [fingerprint(backwards.task(ordinal)) for ordinal in reversed(range(12))] == tasks[::-1]
    assert len({task[2] for task in tasks}) == 12
    other = source(4, **settings)
    assert sum(other.task(ordinal).lr_id == tasks[ordinal][1] for ordinal in range(12)) < 4


@pytest.mark.parametrize("kind", ["hr", "lr"])
def test_each_epoch_visits_each_photograph_once(folder: Path, kind: str) -> None:
    """Also far into the stream; and the order changes from epoch to epoch."""
    stream = source(path=[str(folder)], crop=64 if kind == "hr" else 128, kind=kind)
    orders = []
    for epoch in (0, 1, 2, 3, 1000):
        tasks = [stream.task(epoch * PHOTOS + k) for k in range(PHOTOS)]
        order = tuple(task.lr_id.split("@")[0] for task in tasks)
        assert Counter(order) == Counter(f"p{k}" for k in range(PHOTOS))
        orders.append(order)
    assert len(set(orders)) > 2


def test_hr_tasks_are_crops_and_their_degradations(folder: Path) -> None:
    """The HR crop is where `lr_id` says, and crops are spread over the picture."""
    stream = source(path=[str(folder)], crop=32, scale=2)
    corners = set()
    for ordinal in range(40):
        task = stream.task(ordinal)
        name, at = task.lr_id.split("@")
        x, y = map(int, at.split(","))
        photo = np.asarray(Image.open(folder / f"{name}.png"))
        assert task.hr is not None
        np.testing.assert_array_equal(task.hr.transpose(1, 2, 0), photo[y : y + 32, x : x + 32])
        assert task.lr.shape == (3, 16, 16) and task.lr.flags.c_contiguous and task.scale == 2
        corners.add((x, y))
    assert len(corners) > 30
    assert max(x for x, _ in corners) > 36 and max(y for _, y in corners) > 24


def test_lr_tasks_are_untouched_pixels_without_hr(folder: Path) -> None:
    """`crop` counts output pixels: 128 at scale 4 is an LR crop of 32."""
    task = source(path=[str(folder)], kind="lr", crop=128).task(2)
    name, at = task.lr_id.split("@")
    x, y = map(int, at.split(","))
    photo = np.asarray(Image.open(folder / f"{name}.png"))
    assert task.hr is None
    np.testing.assert_array_equal(task.lr.transpose(1, 2, 0), photo[y : y + 32, x : x + 32])


def test_paired_crops_show_the_same_place(pairs: Path) -> None:
    """HR pixel (4y, 4x) of every pair is LR pixel (y, x), in random crops and in the grid."""
    stream = source(path=[str(pairs / "lr")], hr_path=str(pairs / "hr"), kind="paired", crop=32)
    tasks = [stream.task(ordinal) for ordinal in range(30)] + stream.grid(12)
    for task in tasks:
        assert task.hr is not None and task.hr.shape == (3, 32, 32) and task.lr.shape == (3, 8, 8)
        np.testing.assert_array_equal(task.hr[:, ::4, ::4], task.lr)
    assert len({task.lr.tobytes() for task in tasks[:30]}) > 20


def test_grid_is_reproducible_and_does_not_overlap(folder: Path) -> None:
    """All 2 x 2 cells of 32 pixels of each picture, each once; the same for every run seed."""
    settings = {"path": [str(folder)], "crop": 32}
    tasks = source(0, **settings).grid(20)
    other = source(1, **settings).grid(20)
    assert [fingerprint(task)[1:4] for task in tasks] == [fingerprint(task)[1:4] for task in other]
    assert [task.ordinal for task in tasks] == list(range(20))
    taken: dict[str, np.ndarray] = {}
    for task in tasks:
        name, at = task.lr_id.split("@")
        x, y = map(int, at.split(","))
        seen = taken.setdefault(name, np.zeros((96, 96), int))
        seen[y : y + 32, x : x + 32] += 1
    assert len(taken) == PHOTOS
    assert max(seen.max() for seen in taken.values()) == 1


def test_a_small_grid_is_spread_over_all_pictures(folder: Path) -> None:
    tasks = source(path=[str(folder)], crop=32).grid(PHOTOS)
    assert {task.lr_id.split("@")[0] for task in tasks} == {f"p{k}" for k in range(PHOTOS)}


def test_a_grid_larger_than_the_pictures_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="eval.crops: 31 asked, but the images hold only 20 crops of 32 px"):
        source(path=[str(folder)], crop=32).grid(31)


def test_too_small_pictures_are_named(folder: Path) -> None:
    save(folder / "tiny.png", 30, 90, 9)
    with pytest.raises(ValueError, match=r"at least 32x32, too small: tiny \(90x30\)"):
        source(path=[str(folder)], crop=32)


def test_a_missing_pair_is_named(pairs: Path) -> None:
    (pairs / "hr" / "p1.png").unlink()
    with pytest.raises(ValueError, match=r"no HR image .* for \['p1'\]"):
        source(path=[str(pairs / "lr")], hr_path=str(pairs / "hr"), kind="paired", crop=32)


def test_a_pair_of_the_wrong_size_is_named_with_both_sizes(pairs: Path) -> None:
    save(pairs / "hr" / "p2.png", 80, 92, 7)
    with pytest.raises(ValueError, match="pair 'p2': expected HR 96x80, got 92x80"):
        source(path=[str(pairs / "lr")], hr_path=str(pairs / "hr"), kind="paired", crop=32)


def test_pictures_of_equal_name_in_two_folders_are_both_used(tmp_path: Path) -> None:
    """DIV2K and Flickr2K both have a 0001.png."""
    for k, name in enumerate(("a", "b")):
        save(tmp_path / name / "0001.png", 40, 40, k)
    stream = source(path=[str(tmp_path / "a"), str(tmp_path / "b")], crop=32)
    reds = {int(stream.task(ordinal).hr[0, 0, 0]) for ordinal in range(2)}  # type: ignore[index]
    assert reds == {0, 1}


class TestVaried:
    def test_half_of_the_images_are_mirrored_with_their_ground_truth(self, folder: Path) -> None:
        """The LR image of a mirrored task is the mirrored LR image of the task as it is."""
        plain, flipped = source(path=[str(folder)], crop=64), source(path=[str(folder)], crop=64, flip=True)
        mirrored = 0
        for ordinal in range(40):
            a, b = plain.task(ordinal), flipped.task(ordinal)
            assert a.hr is not None and b.hr is not None
            if np.array_equal(a.hr, b.hr):
                assert np.array_equal(a.lr, b.lr) and a.lr_id == b.lr_id
                continue
            mirrored += 1
            assert np.array_equal(a.hr[:, :, ::-1], b.hr) and np.array_equal(a.lr[:, :, ::-1], b.lr)
            assert b.lr_id == f"{a.lr_id},mirrored"
        assert 10 <= mirrored <= 30

    def test_a_random_enlargement_is_each_of_three_and_the_same_again(self, folder: Path) -> None:
        ways = [source(path=[str(folder)], crop=64, enlargement="random").task(k).enlargement for k in range(60)]
        assert ways == [
            source(path=[str(folder)], crop=64, enlargement="random").task(k).enlargement for k in range(60)
        ]
        assert min(Counter(ways)[way] for way in ("bicubic", "bilinear", "area")) >= 10

    def test_without_either_a_task_is_enlarged_bicubically(self, folder: Path) -> None:
        assert {source(path=[str(folder)], crop=64).task(k).enlargement for k in range(20)} == {"bicubic"}

    def test_held_out_crops_are_never_varied(self, folder: Path) -> None:
        varied = source(path=[str(folder)], crop=64, flip=True, enlargement="random").grid(4)
        plain = source(path=[str(folder)], crop=64).grid(4)
        assert [fingerprint(task) for task in varied] == [fingerprint(task) for task in plain]
        assert {task.enlargement for task in varied} == {"bicubic"}


def test_where_the_recipe_sharpens_the_ground_truth_is_the_sharpened_photograph(folder: Path) -> None:
    """Real-ESRGAN degrades and rewards the sharpened crop, GDPO-SR's recipe the crop itself."""
    crops = {
        recipe: source(path=[str(folder)], crop=64, degradation=recipe).task(0) for recipe in ("realesrgan", "gdpo")
    }
    plain = crops["gdpo"].hr
    assert plain is not None and crops["realesrgan"].hr is not None
    expected = target(np.ascontiguousarray(plain.transpose(1, 2, 0)), DEGRADATIONS["realesrgan"])
    np.testing.assert_array_equal(crops["realesrgan"].hr, expected.transpose(2, 0, 1))
    assert not np.array_equal(crops["realesrgan"].hr, plain)
