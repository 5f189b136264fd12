"""What is done to images where a config asks for no more than a shift and a flip."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from train.augment import shifted
from train.data.images import pixels


@dataclass(frozen=True)
class CentreSquare:
    """The centre square of an image whose shorter side is resized to `size` (bilinear); None: the image as it is."""

    size: int | None

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Uint8 (size, size, channels)."""
        if self.size is None or image.size == (self.size, self.size):
            return pixels(image)
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return pixels(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True)
class ShiftAndFlip:
    """`CentreSquare`, moved by up to `max_shift` pixels along each axis, and mirrored with probability 1/2."""

    size: int | None
    max_shift: int
    flip: bool

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Uint8 (size, size, channels)."""
        values = CentreSquare(self.size)(image)
        if self.max_shift:
            values = shifted(values, rng, self.max_shift)
        return values[:, ::-1] if self.flip and rng.random() < 0.5 else values


def shifted_and_flipped(images: np.ndarray, rng: np.random.Generator, max_shift: int, flip: bool) -> np.ndarray:
    """Uint8 (b, h, w, c), each row changed as by `ShiftAndFlip`; all draws are made at once."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    top, left = rng.integers(0, 2 * max_shift + 1, size=(2, count)).tolist()
    direction = np.where(rng.random(count) < 0.5 * flip, -1, 1).tolist()
    changed = np.empty_like(images)
    for row in range(count):  # slices: five times as fast as one gather of all windows
        window = padded[row, top[row] : top[row] + height, left[row] : left[row] + width]
        changed[row] = window[:, :: direction[row]]
    return changed
