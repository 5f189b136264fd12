"""Random changes of training images: NumPy arrays in and out, every draw from the generator that is passed."""

import numpy as np


def shifted(image: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """`image` (h, w, c) moved by up to `most` pixels along each axis, uniformly; zeros move in.

    Torchvision's `RandomCrop((h, w), padding=most)`.
    """
    height, width, _ = image.shape
    top, left = rng.integers(0, 2 * most + 1, size=2)
    padded = np.pad(image, ((most, most), (most, most), (0, 0)))
    return padded[top : top + height, left : left + width]
