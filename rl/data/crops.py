"""Augmented HR crops for supervised training: one crop per call, a pure function of (photographs, seed)."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from rl.config.pretrain import PhotoSet
from rl.data.photos import Photos, load_photos
from rl.types import U8

SHRINK = (1.0, 1.0, 0.75, 0.5)
PERMUTE_SHARE = 0.3


class CropSource:
    """Random crops `[side, side, 3]` of weighted photographs: shrunk, rotated, mirrored, channels permuted.

    Without `augment` a crop is an unchanged window of the photograph, mirrored with probability 1/2 if `flip`.
    """

    def __init__(self, sets: Sequence[PhotoSet], seed: int, *, augment: bool = True, flip: bool = False) -> None:
        self._augment = augment
        self._flip = flip
        self._photos: list[Photos] = []
        self.names: list[str] = []
        weights: list[float] = []
        for photo_set in sets:
            photos = load_photos(photo_set.path)
            self._photos += [photos] * len(photos)
            self.names += photos
            weights += [photo_set.weight] * len(photos)
        self._weights = np.array(weights) / sum(weights)
        self._rng = np.random.default_rng(seed)

    @property
    def state(self) -> Mapping[str, Any]:
        """Determines the next crop; assign it to a source with the same photographs and seed."""
        return self._rng.bit_generator.state

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def crop(self, side: int) -> U8:
        """The next crop."""
        return self.named_crop(side)[1]

    def named_crop(self, side: int) -> tuple[str, U8]:
        """The next crop and the name of its photograph."""
        rng = self._rng
        chosen = rng.choice(len(self._photos), p=self._weights)
        name = self.names[chosen]
        photo = self._photos[chosen][name]
        factor = SHRINK[rng.integers(len(SHRINK))] if self._augment else 1.0
        window = int(side / factor)
        y = rng.integers(0, photo.shape[0] - window + 1)
        x = rng.integers(0, photo.shape[1] - window + 1)
        crop = photo[y : y + window, x : x + window]
        if factor != 1.0:
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
        if not self._augment:
            mirrored = self._flip and rng.random() < 0.5
            return name, np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)
        turn = rng.integers(8)
        crop = np.rot90(crop, int(turn) % 4)
        crop = crop[:, ::-1] if turn > 3 else crop
        if rng.random() < PERMUTE_SHARE:
            crop = crop[..., rng.permutation(3)]
        return name, np.ascontiguousarray(crop)

    def vae_crop(self, side: int, blurred_share: float, scale: int) -> U8:
        """A crop that is sometimes shrunk and re-enlarged by `scale`, like the LR images that the encoder sees."""
        crop = self.crop(side)
        if self._rng.random() >= blurred_share:
            return crop
        small = cv2.resize(crop, (side // scale, side // scale), interpolation=cv2.INTER_AREA)
        blurred: U8 = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        return blurred
