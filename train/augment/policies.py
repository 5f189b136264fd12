"""Learned and trivial policies: TrivialAugment, RandAugment, AutoAugment, as torchvision 0.28 has them.

Draws come in torchvision's order, and magnitudes are its float32 numbers, so that the same draws give the same bytes.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# The largest magnitude of each operation that goes both ways; a draw decides on the sign.
_WIDE = {
    **dict.fromkeys(("ShearX", "ShearY"), 0.99),
    **dict.fromkeys(("TranslateX", "TranslateY"), 32.0),
    "Rotate": 135.0,
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.99),
}
_ONE_WAY = ("Posterize", "Solarize")
_WITHOUT_MAGNITUDE = ("AutoContrast", "Equalize")
_OPERATIONS = ("Identity", *_WIDE, *_ONE_WAY, *_WITHOUT_MAGNITUDE)

# AutoAugment, arXiv 1805.09501, Table 9: two operations each, with probability and level 0 to 9.
_Step = tuple[str, float, int]
_IMAGENET: tuple[tuple[_Step, _Step], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


def trivial_augment_wide(
    image: Image.Image, rng: np.random.Generator, resampling: Image.Resampling, bins: int = 31
) -> Image.Image:
    """The image after one operation with one of `bins` magnitudes. Müller & Hutter, arXiv 2103.10158."""
    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    level = int(rng.integers(bins)) if operation in _WIDE or operation in _ONE_WAY else 0
    size = magnitude_of(operation, level, bins, _WIDE, fewest_bits=2)
    return apply(operation, image, _either_way(operation, size, rng), resampling)


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    resampling: Image.Resampling,
    operations: int = 2,
    level: int = 9,
    bins: int = 31,
) -> Image.Image:
    """The image after `operations` random ones, all at the same level. Cubuk et al., arXiv 1909.13719."""
    largest = _standard(image)
    for _ in range(operations):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        size = magnitude_of(operation, level, bins, largest, fewest_bits=4)
        image = apply(operation, image, _either_way(operation, size, rng), resampling)
    return image


def auto_augment(image: Image.Image, rng: np.random.Generator, resampling: Image.Resampling) -> Image.Image:
    """The image after one of the 25 pairs of operations found for ImageNet. Cubuk et al., arXiv 1805.09501."""
    pair = _IMAGENET[rng.integers(len(_IMAGENET))]
    chances, signs = rng.random(2), rng.integers(2, size=2)
    largest = _standard(image)
    for (operation, probability, level), chance, sign in zip(pair, chances, signs, strict=True):
        if chance <= probability:
            size = magnitude_of(operation, level, 10, largest, fewest_bits=4)
            size = -size if operation in largest and sign == 0 else size
            image = apply(operation, image, size, resampling)
    return image


def apply(operation: str, image: Image.Image, magnitude: float, resampling: Image.Resampling) -> Image.Image:
    """The image after one operation, with black where nothing of it comes to lie.

    Shears are slopes about the top left corner, translations whole pixels, rotations counter-clockwise degrees about
    the centre; brightness, colour, contrast and sharpness change by the factor 1 + magnitude.
    """
    width, height = image.size
    match operation:
        case "Identity":
            return image
        case "ShearX":
            return image.transform(image.size, Image.Transform.AFFINE, (1, magnitude, 0, 0, 1, 0), resampling)
        case "ShearY":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, magnitude, 1, 0), resampling)
        case "TranslateX":
            return image.crop((-int(magnitude), 0, width - int(magnitude), height))
        case "TranslateY":
            return image.crop((0, -int(magnitude), width, height - int(magnitude)))
        case "Rotate":
            return image.rotate(magnitude, resampling)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return getattr(ImageEnhance, operation)(image).enhance(1.0 + magnitude)
        case "Posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, math.ceil(magnitude))
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
    raise ValueError(f"Unknown operation {operation!r}. Known: {', '.join((*_OPERATIONS, 'Invert'))}.")


def magnitude_of(operation: str, level: int, bins: int, largest: dict[str, float], fewest_bits: int) -> float:
    """What `applied` takes for a level of 0 to bins - 1; 0 where there is nothing to choose."""
    if operation in largest:
        return _linear(0.0, largest[operation], level, bins)
    if operation == "Posterize":
        return 8 - round(level / ((bins - 1) / (8 - fewest_bits)))
    return _linear(255.0, 0.0, level, bins) if operation == "Solarize" else 0.0


def _linear(first: float, last: float, level: int, bins: int) -> float:
    # torch.linspace: a float32 step, counted from the nearer end and rounded to float32 once.
    step = float((np.float32(last) - np.float32(first)) / np.float32(bins - 1))
    if level < bins // 2:
        return float(np.float32(float(np.float32(first)) + step * level))
    return float(np.float32(float(np.float32(last)) - step * (bins - 1 - level)))


def _standard(image: Image.Image) -> dict[str, float]:
    """The largest magnitudes of RandAugment and AutoAugment; translations are a share of the image's sides."""
    sizes = dict.fromkeys(_WIDE, 0.9) | dict.fromkeys(("ShearX", "ShearY"), 0.3) | {"Rotate": 30.0}
    return sizes | {"TranslateX": 150 / 331 * image.width, "TranslateY": 150 / 331 * image.height}


def _either_way(operation: str, size: float, rng: np.random.Generator) -> float:
    return -size if operation in _WIDE and rng.integers(2) else size
