import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import tyro

from tests.random_images import random_images
from train.augment import (
    AugmentConfig,
    BlurConfig,
    ColorJitterConfig,
    EvalTransformConfig,
    MixConfig,
    eval_transform,
    shift,
    train_transform,
)


def test_shifts_are_uniform_and_zeros_move_in():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    expected = {}
    for down in (-2, -1, 0, 1, 2):
        for right in (-2, -1, 0, 1, 2):
            moved = np.zeros_like(image)
            for row in range(3):
                for column in range(4):
                    if 0 <= row + down < 3 and 0 <= column + right < 4:
                        moved[row + down, column + right] = image[row, column]
            expected[moved.tobytes()] = 0
    assert len(expected) == 25
    rng = np.random.default_rng(0)
    for _ in range(5000):
        expected[shift(image, rng, 2).tobytes()] += 1  # KeyError: not a shift
    counts = np.array(list(expected.values()))
    # 200 expected each; 25 cells: chi-squared with 24 degrees of freedom stays below 51 in 999 of 1,000 cases.
    assert ((counts - 200) ** 2 / 200).sum() < 51


@dataclass(frozen=True)
class Carrying:
    """A config as an experiment would be."""

    augment: AugmentConfig
    evaluation: EvalTransformConfig
    mix: MixConfig


CARRYING = Carrying(
    AugmentConfig(crop_size=176, flip=0.5, auto_augment="ta_wide", random_erase=0.1),
    EvalTransformConfig(resize=236, crop=224),
    MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0, group_size=64),
)


def test_every_field_can_be_overridden_from_the_command_line():
    arguments = {
        "--augment.auto-augment": "ra",
        "--augment.crop-size": "None",
        "--augment.crop-scale": "0.2 1.0",
        "--augment.color-jitter.hue": "0.1",
        "--augment.blur.kernel-size": "23",
        "--augment.blur.sigma": "0.1 1.5",
        "--evaluation.resize": "256",
        "--evaluation.interpolation": "bicubic",
        "--mix.group-size": "None",
    }
    words = [word for name, value in arguments.items() for word in (name, *value.split())]
    config = tyro.cli(Carrying, default=CARRYING, args=words)
    assert config == Carrying(
        AugmentConfig(
            crop_scale=(0.2, 1.0),
            flip=0.5,
            color_jitter=ColorJitterConfig(hue=0.1),
            blur=BlurConfig(sigma=(0.1, 1.5), kernel_size=23),
            auto_augment="ra",
            random_erase=0.1,
        ),
        EvalTransformConfig(resize=256, crop=224, interpolation="bicubic"),
        MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0),
    )


def test_an_unknown_policy_is_refused_with_those_that_are_known(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Carrying, default=CARRYING, args=["--augment.auto-augment", "augmix"])
    said = capsys.readouterr().err
    assert "invalid choice 'augmix'" in said
    assert all(f"'{name}'" in said for name in (None, "ta_wide", "ra", "imagenet"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AugmentConfig(flip=1.5), "flip must be a probability between 0 and 1, got 1.5"),
        (AugmentConfig(random_erase=-0.1), "random_erase must be a probability"),
        (AugmentConfig(color_jitter=ColorJitterConfig(2.0)), "color_jitter.probability must be a probability"),
        (AugmentConfig(color_jitter=ColorJitterConfig(1.0, contrast=-1)), "contrast must not be negative, got -1"),
        (AugmentConfig(color_jitter=ColorJitterConfig(1.0, hue=0.6)), "hue must lie between 0 and 0.5, got 0.6"),
        (AugmentConfig(blur=BlurConfig(sigma=(0.0, 2.0))), "blur.sigma must be two rising positive numbers"),
        (AugmentConfig(blur=BlurConfig(kernel_size=10)), "blur.kernel_size must be odd and positive, got 10"),
        (AugmentConfig(crop_scale=(1.0, 0.08)), r"crop_scale must be two rising numbers in \(0, 1\]"),
        (AugmentConfig(crop_size=0), "crop_size must be positive, got 0"),
        (AugmentConfig(max_shift=-1), "max_shift must not be negative, got -1"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_any_image(config, message):
    with pytest.raises(ValueError, match=message):
        train_transform(config)


def test_evaluation_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="resize must be positive, got -1"):
        eval_transform(EvalTransformConfig(resize=-1))
    with pytest.raises(ValueError, match="crop must be positive, got 0"):
        eval_transform(EvalTransformConfig(crop=0))


def test_transforms_travel_to_worker_processes():
    (image,) = random_images(1)
    augment = pickle.loads(pickle.dumps(train_transform(CARRYING.augment)))
    expected = train_transform(CARRYING.augment)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(augment(image, np.random.default_rng(0)), expected)
