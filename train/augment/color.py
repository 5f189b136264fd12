"""What the self-supervised methods do to colours, on RGB or grey images: jitter, grayscale, blur."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

from train.augment.config import BlurConfig, ColorJitterConfig

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def color_jitter(image: Image.Image, rng: np.random.Generator, config: ColorJitterConfig) -> Image.Image:
    """The image with random brightness, contrast, saturation and hue, changed in random order.

    Torchvision's `ColorJitter`; a part of strength 0 takes no random number.
    """
    order = rng.permutation(4)
    factors = [_factor(rng, strength) for strength in (config.brightness, config.contrast, config.saturation)]
    turn = rng.uniform(-config.hue, config.hue) if config.hue > 0 else None
    for which in order:
        if which < len(factors):
            image = _ENHANCERS[which](image).enhance(factors[which])
        elif turn is not None:  # a turn by 0 would still round the colours
            image = hue_turned(image, turn)
    return image


def hue_turned(image: Image.Image, turn: float) -> Image.Image:
    """The image with every hue moved by `turn` of the colour circle, in Pillow's 256 steps; grey stays grey."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(step + int(turn * 255)) % 256 for step in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert(image.mode)


def grayscale(image: Image.Image) -> Image.Image:
    """The image's luma in as many channels as it had."""
    return image.convert("L").convert(image.mode)


def blur(image: Image.Image, rng: np.random.Generator, config: BlurConfig) -> Image.Image:
    """The image under a Gaussian of random width; see `BlurConfig.kernel_size` for which."""
    sigma = rng.uniform(*config.sigma)
    if config.kernel_size is None:
        return image.filter(ImageFilter.GaussianBlur(sigma))
    return convolve(image, config.kernel_size, sigma)


def convolve(image: Image.Image, kernel_size: int, sigma: float) -> Image.Image:
    """The image under a Gaussian cut off at `kernel_size` pixels, mirrored at its edges.

    Torchvision's `gaussian_blur`, and the blur of SimCLR (https://github.com/google-research/simclr) with a kernel of
    a tenth of the image. Exactly rounded: torchvision sums in float32, and differs by 1 in about 2 of 100,000 values.
    """
    reach = np.arange(kernel_size) - (kernel_size - 1) / 2
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum()
    rows = ndimage.correlate1d(np.asarray(image, np.float64), kernel, axis=0, mode="mirror")
    pixels = ndimage.correlate1d(rows, kernel, axis=1, mode="mirror")
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _factor(rng: np.random.Generator, strength: float) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength) if strength > 0 else 1.0
