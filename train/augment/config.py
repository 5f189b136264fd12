"""What happens to images on their way to the network, for experiments to carry; left alone, nothing does."""

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ColorJitterConfig:
    """Brightness, contrast, saturation and hue in random order: torchvision's `ColorJitter`, not for every image."""

    probability: float = 0.0
    brightness: float = 0.0  # the factor lies between 1 - brightness, but not below 0, and 1 + brightness
    contrast: float = 0.0  # likewise
    saturation: float = 0.0  # likewise
    hue: float = 0.0  # the shift lies between -hue and hue, in turns of the colour circle; at most 0.5


@dataclass(frozen=True)
class BlurConfig:
    """A Gaussian of random width over some of the images."""

    probability: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels, uniform between the two
    kernel_size: int | None = None  # pixels, odd, of a kernel as in SimCLR; None: the blur of Pillow, as in VICReg


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image, in this order; what is off takes no random numbers."""

    crop_size: int | None = None  # pixels of the square that a random part is resized to; None: no such crop
    crop_scale: tuple[float, float] = (0.08, 1.0)  # the part's share of the image's area
    max_shift: int = 0  # pixels along each axis; zeros move in
    flip: float = 0.0  # probability of left for right
    color_jitter: ColorJitterConfig = ColorJitterConfig()
    grayscale: float = 0.0  # probability
    blur: BlurConfig = BlurConfig()
    solarize: float = 0.0  # probability of inverting what is not below 128
    auto_augment: Literal["ta_wide", "ra", "imagenet"] | None = None  # torchvision's names for its three policies
    random_erase: float = 0.0  # probability that a box becomes 0, which after normalization is the mean colour
    interpolation: Interpolation = "bilinear"  # of the crop, and of shears and rotations in a policy


@dataclass(frozen=True)
class EvalTransformConfig:
    """What happens to an image that is evaluated."""

    resize: int | None = None  # pixels of the shorter side; None: the image keeps its size
    crop: int | None = None  # pixels of the square in the centre; None: the whole image
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class MixConfig:
    """Mixup, CutMix, or one of the two for each group with equal chances; in training every image is mixed."""

    mixup_alpha: float = 0.0  # the share that stays is Beta(alpha, alpha); 0: off
    cutmix_alpha: float = 0.0  # likewise; before the box is cut off at the edges
    group_size: int | None = None  # images that mix among themselves: torchvision's per GPU; None: the whole batch


def check_augment(config: AugmentConfig) -> None:
    """Raises ValueError for a config that no image could go through."""
    jitter, blur = config.color_jitter, config.blur
    probabilities = {
        "flip": config.flip,
        "color_jitter.probability": jitter.probability,
        "grayscale": config.grayscale,
        "blur.probability": blur.probability,
        "solarize": config.solarize,
        "random_erase": config.random_erase,
    }
    for name, value in probabilities.items():
        _require(0 <= value <= 1, f"{name} must be a probability between 0 and 1, got {value}.")
    for name in ("brightness", "contrast", "saturation"):
        value = getattr(jitter, name)
        _require(value >= 0, f"color_jitter.{name} must not be negative, got {value}.")
    _require(0 <= jitter.hue <= 0.5, f"color_jitter.hue must lie between 0 and 0.5, got {jitter.hue}.")
    low, high = blur.sigma
    _require(0 < low <= high, f"blur.sigma must be two rising positive numbers, got {blur.sigma}.")
    odd = blur.kernel_size is None or (blur.kernel_size > 0 and blur.kernel_size % 2 == 1)
    _require(odd, f"blur.kernel_size must be odd and positive, got {blur.kernel_size}.")
    low, high = config.crop_scale
    _require(0 < low <= high <= 1, f"crop_scale must be two rising numbers in (0, 1], got {config.crop_scale}.")
    _require(config.crop_size is None or config.crop_size > 0, f"crop_size must be positive, got {config.crop_size}.")
    _require(config.max_shift >= 0, f"max_shift must not be negative, got {config.max_shift}.")


def check_eval_transform(config: EvalTransformConfig) -> None:
    """Raises ValueError for sizes that are none."""
    for name, value in (("resize", config.resize), ("crop", config.crop)):
        _require(value is None or value > 0, f"{name} must be positive, got {value}.")


def check_mix(config: MixConfig, batch_size: int, repeats: int = 1) -> None:
    """Raises ValueError for negative alphas, for a batch that does not divide into groups of two or more, and for fewer
    groups than an image has `repeats`, which would be mixed with itself."""
    for name, alpha in (("mixup_alpha", config.mixup_alpha), ("cutmix_alpha", config.cutmix_alpha)):
        _require(alpha >= 0, f"{name} must not be negative, got {alpha}.")
    if config.mixup_alpha == config.cutmix_alpha == 0:
        return
    size = batch_size if config.group_size is None else config.group_size
    fits = size >= 2 and batch_size % size == 0
    _require(fits, f"Mixing needs a batch of whole groups of two or more, got {batch_size} images in groups of {size}.")
    message = f"Mixing needs as many groups as data.repeats={repeats}, got {batch_size} images in groups of {size}."
    _require(repeats <= batch_size // size, message)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
