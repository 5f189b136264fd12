"""From a decoded image to the bytes of a batch, for training and for evaluation."""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from train.augment import color, geometry, policies
from train.augment.config import AugmentConfig, EvalTransformConfig, check_augment, check_eval_transform
from train.augment.shift import shift

_POLICIES = {
    "ta_wide": policies.trivial_augment_wide,
    "ra": policies.rand_augment,
    "imagenet": policies.auto_augment,
}


def train_transform(
    config: AugmentConfig,
    evaluation: EvalTransformConfig = EvalTransformConfig(),  # noqa: B008 - frozen
) -> Callable[[Image.Image, np.random.Generator], np.ndarray]:
    """A function of an image (mode RGB or L) and a generator that returns bytes, uint8 (h, w, c).

    Without a random crop an image is first resized and cropped as for `evaluation`.

    All of `config` but random erasing, whose box is drawn by `erase_box` afterwards. The order is that of torchvision's
    training preset (https://github.com/pytorch/vision, references/classification/presets.py) and, where colours are
    jittered, of VICReg's code (https://github.com/facebookresearch/vicreg, augmentations.py).

    Raises:
      ValueError: for a config that no image could go through.
    """
    check_augment(config)
    check_eval_transform(evaluation)
    return functools.partial(_train, config, evaluation)


def eval_transform(config: EvalTransformConfig) -> Callable[[Image.Image], np.ndarray]:
    """A function of an image (mode RGB or L) that returns bytes, uint8 (h, w, c).

    Raises:
      ValueError: for sizes that are none.
    """
    check_eval_transform(config)
    return functools.partial(_evaluate, config)


def _train(
    config: AugmentConfig, evaluation: EvalTransformConfig, image: Image.Image, rng: np.random.Generator
) -> np.ndarray:
    _check_mode(image)
    resampling = Image.Resampling[config.interpolation.upper()]
    if config.crop_size is not None:
        image = geometry.random_resized_crop(image, rng, config.crop_size, config.crop_scale, resampling)
    else:
        image = _resize_and_crop(evaluation, image)
    if config.max_shift:
        image = Image.fromarray(shift(np.asarray(image), rng, config.max_shift))
    if _choose(rng, config.flip):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if _choose(rng, config.color_jitter.probability):
        image = color.color_jitter(image, rng, config.color_jitter)
    if _choose(rng, config.grayscale):
        image = color.grayscale(image)
    if _choose(rng, config.blur.probability):
        image = color.blur(image, rng, config.blur)
    if _choose(rng, config.solarize):
        image = ImageOps.solarize(image)
    if config.auto_augment is not None:
        image = _POLICIES[config.auto_augment](image, rng, resampling)
    return _pixels(image)


def _evaluate(config: EvalTransformConfig, image: Image.Image) -> np.ndarray:
    _check_mode(image)
    return _pixels(_resize_and_crop(config, image))


def _resize_and_crop(config: EvalTransformConfig, image: Image.Image) -> Image.Image:
    if config.resize is not None:
        image = geometry.resize(image, config.resize, Image.Resampling[config.interpolation.upper()])
    return image if config.crop is None else geometry.center_crop(image, config.crop)


def _choose(rng: np.random.Generator, probability: float) -> bool:
    return probability > 0 and rng.random() < probability


def _check_mode(image: Image.Image) -> None:
    if image.mode not in ("RGB", "L"):
        raise ValueError(f"Images must be of mode RGB or L, got {image.mode}. Convert them when they are decoded.")


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)
