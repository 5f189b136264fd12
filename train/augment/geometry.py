"""Where to look: random and central crops, and the boxes that random erasing takes away.

Torchvision's distributions (`RandomResizedCrop.get_params`, `RandomErasing.get_params`, version 0.28), drawn from a
NumPy generator in the same order.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_TRIES = 10


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float],
    resampling: Image.Resampling,
) -> Image.Image:
    """A random part of the image as a square of `size` pixels; see `crop_box`."""
    top, left, height, width = crop_box(rng, image.height, image.width, scale)
    # `resize(box=...)` would be one call, but lets pixels outside the box bleed in.
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size, size), resampling)


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box with a uniform share of the area between `scale` and a log-uniform width over height between `ratio`.

    Of ten draws the first that fits, put anywhere; if none fits, the largest central box with an allowed ratio.
    """
    for box_width, box_height in _sides(rng, height * width, scale, ratio):
        if 0 < box_width <= width and 0 < box_height <= height:
            return _somewhere(rng, height, width, box_height, box_width)
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def erase_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    probability: float,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> np.ndarray:
    """The box that random erasing takes from an image: top, left, height, width, int32 (4,); all 0 for none.

    Unlike in `crop_box` the ratio is height over width, and a box that spans the image does not fit. With the given
    probability, of ten draws the first that fits; none if none does. Zhong et al., arXiv 1708.04896.
    """
    if probability > 0 and rng.random() < probability:
        for box_height, box_width in _sides(rng, height * width, scale, ratio):
            if box_height < height and box_width < width:
                return np.array(_somewhere(rng, height, width, box_height, box_width), np.int32)
    return np.zeros(4, np.int32)


def resize(image: Image.Image, shorter_side: int, resampling: Image.Resampling) -> Image.Image:
    """The image with its shorter side at `shorter_side` pixels; the longer one is rounded down."""
    longer_side = int(shorter_side * max(image.size) / min(image.size))
    upright = image.width <= image.height
    return image.resize((shorter_side, longer_side) if upright else (longer_side, shorter_side), resampling)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The square of `size` pixels in the centre, with zeros where the image is smaller."""
    left, top = _central(image.width, size), _central(image.height, size)
    return image.crop((left, top, left + size, top + size))


def _central(length: int, size: int) -> int:
    # Torchvision rounds halves to even inside the image, and pads a pixel less before than after it.
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def _sides(
    rng: np.random.Generator, area: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Iterator[tuple[int, int]]:
    low, high = (math.log(bound) for bound in ratio)
    for _ in range(_TRIES):
        part = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        yield round(math.sqrt(part * aspect)), round(math.sqrt(part / aspect))


def _somewhere(rng: np.random.Generator, height: int, width: int, box_height: int, box_width: int) -> Box:
    top = int(rng.integers(0, height - box_height + 1))
    return Box(top, int(rng.integers(0, width - box_width + 1)), box_height, box_width)
