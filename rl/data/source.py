"""The run's stream of LR images: ordinal -> SRTask, a pure function of (config, seed). Any process can make any task,
and a resumed run continues where it stopped."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from rl.config.data import DataSection, PairedData, PhotoData
from rl.data.degradation import degrade, target
from rl.data.photos import IMAGE_SUFFIXES, Photos, list_images, load_photos
from rl.data.prompts import load_prompts
from rl.errors import InputError
from rl.seeding import derive_seed
from rl.types import U8, Enlargement, SRTask

ENLARGEMENTS: tuple[Enlargement, ...] = ("bicubic", "bilinear", "area")


class TaskSource:
    """Random crops of photographs (`hr`), of real LR images (`lr`), or of aligned pairs (`paired`).

    Every epoch visits every image once, in its own order.
    """

    def __init__(self, config: DataSection, seed: int) -> None:
        self.config = config
        self.seed = seed
        photos = load_photos(config.path)
        side = config.source_side
        self._sizes = {name: photos.size(name) for name in photos}
        small = [
            f"{name} ({width}x{height})" for name, (height, width) in self._sizes.items() if min(height, width) < side
        ]
        if small:
            raise InputError(
                f"data.path: every image must be at least {side}x{side}, too small: {', '.join(small[:5])}"
            )
        self.names = tuple(photos)
        self._photos = photos
        self._hr = self._pairs(config.hr_path) if isinstance(config, PairedData) else Photos({})
        self._prompts = load_prompts(config, self.names)

    def _pairs(self, hr_path: str) -> Photos:
        """The HR image of every LR image, `scale` times as large."""
        folder = Path(hr_path).expanduser()
        files = {path.stem: path for path in list_images(folder)}
        missing = [name for name in self.names if name not in files]
        if missing:
            raise InputError(
                f"data.hr_path {folder}: no HR image ({', '.join(sorted(IMAGE_SUFFIXES))}) for {missing[:5]}"
            )
        pairs = Photos({name: files[name] for name in self.names})
        for name, (height, width) in self._sizes.items():
            expected, got = (height * self.config.scale, width * self.config.scale), pairs.size(name)
            if got != expected:
                raise InputError(f"pair '{name}': expected HR {expected[1]}x{expected[0]}, got {got[1]}x{got[0]}")
        return pairs

    def task(self, ordinal: int) -> SRTask:
        """Task `ordinal` of the stream."""
        epoch, position = divmod(ordinal, len(self.names))
        name = self.names[epoch_order(self.seed, epoch, len(self.names))[position]]
        rng = np.random.default_rng(derive_seed(self.seed, "crop", ordinal))
        photo = self._photos[name]
        side = self.config.source_side
        y = int(rng.integers(0, photo.shape[0] - side + 1))
        x = int(rng.integers(0, photo.shape[1] - side + 1))
        crop = photo[y : y + side, x : x + side]
        seed = derive_seed(self.seed, "degrade", ordinal)
        task = self._make(ordinal, f"{name}@{x},{y}", name, crop, (y, x), seed)
        return self._varied(task)

    def _varied(self, task: SRTask) -> SRTask:
        """The task as used in training: randomly mirrored and enlarged, if the section says so."""
        rng = np.random.default_rng(derive_seed(self.seed, "vary", task.ordinal))
        mirrored, way = bool(rng.integers(2)), ENLARGEMENTS[rng.integers(len(ENLARGEMENTS))]
        if self.config.flip and mirrored:
            hr = None if task.hr is None else np.ascontiguousarray(task.hr[:, :, ::-1])
            task = replace(task, lr_id=f"{task.lr_id},mirrored", lr=np.ascontiguousarray(task.lr[:, :, ::-1]), hr=hr)
        return replace(task, enlargement=way) if self.config.enlargement == "random" else task

    def _make(self, ordinal: int, lr_id: str, name: str, crop: U8, at: tuple[int, int], seed: int) -> SRTask:
        scale = self.config.scale
        if isinstance(self.config, PhotoData):
            photo = np.ascontiguousarray(crop)
            hr: U8 | None = target(photo, self.config.recipe)
            lr = degrade(photo, scale=scale, recipe=self.config.recipe, seed=seed)
        else:
            lr, hr = crop, None
            if isinstance(self.config, PairedData):
                y, x = (side * scale for side in at)
                hr = self._hr[name][y : y + self.config.crop, x : x + self.config.crop]
        return SRTask(ordinal, lr_id, _chw(lr), None if hr is None else _chw(hr), scale, self.seed, self._prompts[name])

    def grid(self, count: int) -> list[SRTask]:
        """The held-out set of an evaluation: `count` tasks spread evenly over a non-overlapping grid of crops of all
        images, the same in every run."""
        side = self.config.source_side
        tasks = []
        for i, (name, y, x) in enumerate(self.cells(count)):
            crop = self._photos[name][y : y + side, x : x + side]
            tasks.append(self._make(i, f"{name}@{x},{y}", name, crop, (y, x), derive_seed("eval", name, y, x)))
        return tasks

    def cells(self, count: int) -> list[tuple[str, int, int]]:
        """(image, top, left) of the crops of `grid`, from the images' sizes alone; InputError if they hold fewer."""
        side = self.config.source_side
        cells = [
            (name, y, x)
            for name in self.names
            for y in range(0, self._sizes[name][0] - side + 1, side)
            for x in range(0, self._sizes[name][1] - side + 1, side)
        ]
        if count > len(cells):
            raise InputError(f"eval.crops: {count} asked, but the images hold only {len(cells)} crops of {side} px")
        return [cells[i * len(cells) // count] for i in range(count)]


def _chw(image: U8) -> U8:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """A permutation of `count` images for one epoch."""
    rng = np.random.default_rng(derive_seed(seed, "epoch", epoch))
    return tuple(int(i) for i in rng.permutation(count))
