"""Random shifts of small images."""

from typing import NamedTuple

import numpy as np


def shift(image: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """`image` (h, w, ...) moved by up to `most` pixels along each axis, uniformly; zeros move in.

    Torchvision's `RandomCrop((h, w), padding=most)`.
    """
    height, width = image.shape[:2]
    top, left = rng.integers(0, 2 * most + 1, size=2)
    padded = np.zeros((height + 2 * most, width + 2 * most, *image.shape[2:]), image.dtype)
    padded[most : most + height, most : most + width] = image
    return padded[top : top + height, left : left + width]


class Moves(NamedTuple):
    """How each image of a batch is moved: drawn on the host, applied there or on a device."""

    top: np.ndarray  # int (b,), the row of the padded image that becomes the first
    left: np.ndarray  # int (b,), the column
    mirrored: np.ndarray  # bool (b,), then


def draw_moves(rng: np.random.Generator, count: int, max_shift: int, flip: float) -> Moves:
    """Of `count` images, each moved as by `shift` and mirrored with probability `flip`; all draws at once."""
    top, left = rng.integers(0, 2 * max_shift + 1, size=(2, count))
    return Moves(top, left, rng.random(count) < flip)


def move(images: np.ndarray, moves: Moves, max_shift: int) -> np.ndarray:
    """Uint8 (b, h, w, c), each row moved; zeros move in."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    changed = np.empty_like(images)
    for row, (top, left, mirrored) in enumerate(zip(*(of_each.tolist() for of_each in moves), strict=True)):
        window = padded[row, top : top + height, left : left + width]  # slices: five times as fast as one gather
        changed[row] = window[:, :: -1 if mirrored else 1]
    return changed
