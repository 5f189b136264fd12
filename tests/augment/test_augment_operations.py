"""Every image operation gives torchvision's bytes for the same magnitude."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import autoaugment, functional, transforms

from tests.random_images import random_images
from train.augment import color, geometry, policies
from train.augment.config import EvalTransformConfig
from train.augment.transforms import eval_transform

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
INTERPOLATION = {name: transforms.InterpolationMode(name) for name in RESAMPLING}
POLICIES = {"ta_wide": autoaugment.TrivialAugmentWide(), "ra": autoaugment.RandAugment()}
OPERATIONS = [*POLICIES["ta_wide"]._augmentation_space(31), "Invert"]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def assert_same_bytes(ours, theirs):
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def _magnitudes(operation, rng):
    """All that TrivialAugment can ask of the operation, in random order without end, half of them negative."""
    levels, signed = POLICIES["ta_wide"]._augmentation_space(31).get(operation, (torch.tensor(0.0), False))
    while True:
        for level in rng.permutation(np.atleast_1d(levels.numpy())):
            yield float(level) * (-1.0 if signed and rng.integers(2) else 1.0)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_of_the_policies_gives_torchvisions_bytes(operation, interpolation):
    magnitudes = _magnitudes(operation, np.random.default_rng(1))
    for image, magnitude in zip(random_images(100), magnitudes, strict=False):
        theirs = autoaugment._apply_op(image, operation, magnitude, INTERPOLATION[interpolation], None)
        assert_same_bytes(policies.apply(operation, image, magnitude, RESAMPLING[interpolation]), theirs)


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match="Unknown operation 'Cutout'. Known: Identity, ShearX"):
        policies.apply("Cutout", next(random_images(1)), 0.0, Image.Resampling.BILINEAR)


def test_magnitudes_are_torchvisions_to_the_last_bit():
    wide = POLICIES["ta_wide"]._augmentation_space(31)
    for operation, (levels, _) in wide.items():
        ours = [policies.magnitude_of(operation, level, 31, policies._WIDE, 2) for level in range(31)]
        assert ours == [float(level) for level in levels.expand(31)], operation
    assert list(wide) == list(policies._OPERATIONS)
    for width, height in [(224, 176), *np.random.default_rng(0).integers(1, 700, (100, 2)).tolist()]:
        largest = policies._standard(Image.new("RGB", (width, height)))
        for bins, policy in ((31, POLICIES["ra"]), (10, autoaugment.AutoAugment())):
            for operation, (levels, _) in policy._augmentation_space(bins, (height, width)).items():
                ours = [policies.magnitude_of(operation, level, bins, largest, 4) for level in range(bins)]
                assert ours == [float(level) for level in levels.expand(bins)], (operation, width, height)


def test_the_imagenet_policy_is_torchvisions():
    theirs = autoaugment.AutoAugment().policies
    ours = [tuple((name, chance, level) for name, chance, level in pair) for pair in policies._IMAGENET]
    assert ours == [tuple((name, chance, level or 0) for name, chance, level in pair) for pair in theirs]


@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_crops_resized_give_torchvisions_bytes(interpolation, monkeypatch):
    rng = np.random.default_rng(0)
    for image in random_images(100):
        height, width = (int(rng.integers(1, side + 1)) for side in (image.height, image.width))
        top, left = int(rng.integers(image.height - height + 1)), int(rng.integers(image.width - width + 1))
        monkeypatch.setattr(geometry, "crop_box", lambda *_, box=(top, left, height, width): box)
        ours = geometry.random_resized_crop(image, rng, 64, (0.08, 1.0), RESAMPLING[interpolation])
        assert_same_bytes(
            ours, functional.resized_crop(image, top, left, height, width, [64, 64], INTERPOLATION[interpolation])
        )


@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (59, 56), (40, 57), (None, 31), (48, None)])
@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_evaluation_resizes_and_crops_as_torchvision(resize, crop, interpolation):
    transform = eval_transform(EvalTransformConfig(resize, crop, interpolation))
    steps = [] if resize is None else [transforms.Resize(resize, INTERPOLATION[interpolation])]
    theirs = transforms.Compose(steps if crop is None else [*steps, transforms.CenterCrop(crop)])
    for image in random_images(100, largest=200):
        assert_same_bytes(transform(image), theirs(image))
        grey = image.convert("L")
        assert_same_bytes(transform(grey)[..., 0], theirs(grey))


def test_sizes_and_offsets_round_as_torchvision():
    def resized(width, height, size):
        return geometry.resize(Image.new("L", (width, height)), size, Image.Resampling.BILINEAR).size

    assert resized(500, 375, 256) == (341, 256) and resized(500, 375, 236) == (314, 236)
    assert resized(333, 500, 256) == (256, 384) and resized(1000, 333, 256) == (768, 256)
    assert [geometry._central(224 + excess, 224) for excess in (117, 13, 15, 17)] == [58, 6, 8, 8]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_colour_operations_give_torchvisions_bytes(mode):
    rng = np.random.default_rng(0)
    for image in random_images(100, mode=mode):
        turn = float(rng.uniform(-0.5, 0.5))
        assert_same_bytes(color.hue_turned(image, turn), functional.adjust_hue(image, turn))
        channels = len(image.getbands())
        assert_same_bytes(color.grayscale(image), functional.rgb_to_grayscale(image, num_output_channels=channels))


def test_every_turn_of_the_hue_gives_torchvisions_bytes():
    (image,) = random_images(1)
    for turn in (*np.linspace(-0.5, 0.5, 256), 1 / 255, -1 / 255):
        assert_same_bytes(color.hue_turned(image, float(turn)), functional.adjust_hue(image, float(turn)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_convolution_is_torchvisions_rounded_exactly(mode):
    rng = np.random.default_rng(0)
    differing = total = 0
    for index, image in enumerate(random_images(100, smallest=24, mode=mode)):
        kernel_size, sigma = (3, 9, 23)[index % 3], float(rng.uniform(0.1, 2.0))
        ours = np.asarray(color.convolve(image, kernel_size, sigma), int)
        theirs = np.asarray(functional.gaussian_blur(image, [kernel_size] * 2, [sigma] * 2), int)
        assert np.abs(ours - theirs).max() <= 1  # torchvision's float32 sums, near a half
        differing, total = differing + (ours != theirs).sum(), total + ours.size
    assert differing <= 5e-5 * total
