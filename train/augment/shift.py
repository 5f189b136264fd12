"""Random shifts of small images."""

import numpy as np


def shifted(image: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """`image` (h, w, ...) moved by up to `most` pixels along each axis, uniformly; zeros move in.

    Torchvision's `RandomCrop((h, w), padding=most)`.
    """
    height, width = image.shape[:2]
    top, left = rng.integers(0, 2 * most + 1, size=2)
    padded = np.zeros((height + 2 * most, width + 2 * most, *image.shape[2:]), image.dtype)
    padded[most : most + height, most : most + width] = image
    return padded[top : top + height, left : left + width]


def shifted_and_flipped(images: np.ndarray, rng: np.random.Generator, max_shift: int, flip: float) -> np.ndarray:
    """Uint8 (b, h, w, c), each row moved as by `shifted` and mirrored with probability `flip`; all draws at once."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    top, left = rng.integers(0, 2 * max_shift + 1, size=(2, count)).tolist()
    direction = np.where(rng.random(count) < flip, -1, 1).tolist()
    changed = np.empty_like(images)
    for row in range(count):  # slices: five times as fast as one gather of all windows
        window = padded[row, top[row] : top[row] + height, left[row] : left[row] + width]
        changed[row] = window[:, :: direction[row]]
    return changed
