"""Sharpness relative to the HR image: minus |ln(mean |Laplacian| of the candidate / that of HR)|, so that neither blur
nor over-sharpening pays."""

import numpy as np

from rl.types import F64, U8

NEEDS_HR = True
CELL = 16
FLOOR = 0.5
"""Grey levels; a flat cell's noise is no sharpness."""


def score(images: U8, lr: U8, hr: U8, scale: int) -> tuple[F64, F64]:
    ours, theirs = _cells(images), _cells(hr[None])
    local = -np.abs(np.log((ours + FLOOR) / (theirs + FLOOR)))
    whole = -np.abs(np.log((ours.mean(axis=(1, 2)) + FLOOR) / (theirs.mean() + FLOOR)))
    return whole, local


def _cells(images: U8) -> F64:
    grey = images.astype(np.float64).mean(axis=1)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    laplacian = np.abs(around - 4 * grey)
    members, height, width = grey.shape
    means: F64 = laplacian.reshape(members, height // CELL, CELL, width // CELL, CELL).mean(axis=(2, 4))
    return means
