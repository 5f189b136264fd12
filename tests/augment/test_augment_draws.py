"""Random numbers follow torchvision's distributions, and are a function of the generator alone."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import transforms

from tests.random_images import Replay, random_images
from train.augment import AugmentConfig, BlurConfig, ColorJitterConfig, erase_box, policies, train_transform
from train.augment.geometry import crop_box

DRAWS = 3000
# At a true null each comparison fails once in 10,000 seeds; the seeds are fixed.
LEAST_P = 1e-4
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def _assert_same_distribution(ours, theirs):
    """Of boxes: sides, shape, area, and where they lie, as two-sample Kolmogorov-Smirnov tests."""
    for of_box in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0] + b[:, 2] / 2,
        lambda b: b[:, 1] + b[:, 3] / 2,
    ):
        assert stats.ks_2samp(of_box(ours), of_box(theirs)).pvalue > LEAST_P


# The last three fall back to the centre often, or always.
@pytest.mark.parametrize("size", [(375, 500), (64, 64), (500, 333), (40, 130), (300, 60), (7, 400)])
def test_crop_boxes_are_distributed_as_torchvisions(size):
    rng = np.random.default_rng(0)
    image = torch.zeros(1, 1, 1).expand(3, *size)
    ours = np.array([crop_box(rng, *size, SCALE) for _ in range(DRAWS)], float)
    theirs = [transforms.RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(DRAWS)]
    _assert_same_distribution(ours, np.array(theirs, float))


def test_crop_boxes_are_torchvisions_for_the_same_draws(monkeypatch):
    replay, rng = Replay(monkeypatch), np.random.default_rng(0)
    for _ in range(1000):
        size = rng.integers(1, 500, 2).tolist()
        theirs = transforms.RandomResizedCrop.get_params(
            torch.zeros(1, 1, 1).expand(1, *size), list(SCALE), list(RATIO)
        )
        assert crop_box(replay, *size, SCALE) == theirs
        assert replay.draws == []


@pytest.mark.parametrize("size", [(224, 224), (30, 50), (20, 300)])
def test_erased_boxes_are_distributed_as_torchvisions(size):
    rng = np.random.default_rng(0)
    image, erasing = torch.zeros(1, 1, 1).expand(3, *size), transforms.RandomErasing(p=1.0)
    ours = np.array([erase_box(rng, *size, 1.0) for _ in range(DRAWS)], float)
    theirs = []
    for _ in range(DRAWS):
        *box, value = erasing.get_params(image, erasing.scale, erasing.ratio, [0.0])
        theirs.append([0, 0, 0, 0] if value is image else box)  # when none fits
    theirs = np.array(theirs, float)
    ours[ours[:, 3] == 0, 3], theirs[theirs[:, 3] == 0, 3] = 1e-9, 1e-9
    _assert_same_distribution(ours, theirs)


def test_a_box_is_erased_as_often_as_asked():
    rng = np.random.default_rng(0)
    boxes = np.stack([erase_box(rng, 224, 224, 0.1) for _ in range(DRAWS)])
    assert boxes.dtype == np.int32
    assert stats.binomtest(int((boxes[:, 2] > 0).sum()), DRAWS, 0.1).pvalue > LEAST_P


def test_trivial_augment_takes_every_operation_level_and_sign_alike(monkeypatch):
    seen = collections.Counter()
    monkeypatch.setattr(policies, "apply", lambda name, image, magnitude, _: seen.update([name, (name, magnitude)]))
    rng, count = np.random.default_rng(0), 20_000
    for _ in range(count):
        policies.trivial_augment_wide(None, rng, None)
    operations = [seen[name] for name in policies._OPERATIONS]
    assert sum(operations) == count
    assert stats.chisquare(operations).pvalue > LEAST_P
    rotations = [
        seen["Rotate", sign * policies.magnitude_of("Rotate", level, 31, policies._WIDE, 2)]
        for level in range(1, 31)
        for sign in (-1, 1)
    ]
    assert stats.chisquare(rotations).pvalue > LEAST_P


EVERYTHING = AugmentConfig(
    crop_size=24,
    max_shift=2,
    flip=0.5,
    color_jitter=ColorJitterConfig(0.5, 0.4, 0.4, 0.2, 0.1),
    grayscale=0.3,
    blur=BlurConfig(0.5),
    solarize=0.3,
    auto_augment="ra",
)


def test_an_image_depends_on_its_generator_alone():
    augment = train_transform(EVERYTHING)
    images = list(random_images(20))
    first = [augment(image, np.random.default_rng([7, index])) for index, image in enumerate(images)]
    backwards = [augment(images[index], np.random.default_rng([7, index])) for index in reversed(range(20))]
    for one, other in zip(first, reversed(backwards), strict=True):
        assert one.shape == (24, 24, 3) and one.dtype == np.uint8
        np.testing.assert_array_equal(one, other)
    other_seed = [augment(image, np.random.default_rng([8, index])) for index, image in enumerate(images)]
    assert all((one != other).any() for one, other in zip(first, other_seed, strict=True))


def test_a_flip_and_a_grey_image_come_as_often_as_asked():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(1, 4, 3) * 20)
    plain, rng = np.asarray(image), np.random.default_rng(0)
    flip, grey = train_transform(AugmentConfig(flip=0.3)), train_transform(AugmentConfig(grayscale=0.2))
    flipped = sum(bool((flip(image, rng) == plain[:, ::-1]).all()) for _ in range(DRAWS))
    greyed = sum(bool((grey(image, rng) != plain).any()) for _ in range(DRAWS))
    assert stats.binomtest(flipped, DRAWS, 0.3).pvalue > LEAST_P
    assert stats.binomtest(greyed, DRAWS, 0.2).pvalue > LEAST_P
