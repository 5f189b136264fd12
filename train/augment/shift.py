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
