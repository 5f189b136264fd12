"""With the same random numbers whole transforms give what torchvision's give: same draws, same order, same bytes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import autoaugment, functional, transforms

from tests.random_images import Replay, random_images
from train.augment import AugmentConfig, BlurConfig, ColorJitterConfig, erase, erase_box, train_transform
from train.trainer.step import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR, BICUBIC = transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.BICUBIC
JITTER = ColorJitterConfig(0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)


@pytest.fixture(autouse=True)
def seeded(one_torch_thread):
    torch.manual_seed(0)


class PillowBlur(torch.nn.Module):
    """The blur of VICReg's augmentations.py (github.com/facebookresearch/vicreg), on torch's numbers."""

    def forward(self, image):
        return image.filter(ImageFilter.GaussianBlur(torch.empty(1).uniform_(0.1, 2.0).item()))


def _assert_same_bytes(config, theirs, monkeypatch, mode="RGB"):
    replay, ours = Replay(monkeypatch), train_transform(config)
    for image in random_images(100, mode=mode):
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(ours(image, replay), expected.reshape(*expected.shape[:2], -1))
        assert replay.draws == []


POLICIES = {
    None: [],
    "ta_wide": [autoaugment.TrivialAugmentWide(interpolation=BILINEAR)],
    "ra": [autoaugment.RandAugment(interpolation=BILINEAR)],
    "imagenet": [autoaugment.AutoAugment(interpolation=BILINEAR)],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_training_image_is_what_torchvisions_training_preset_makes_of_it(policy, monkeypatch):
    """Crop, flip, policy, normalize, erase: references/classification/presets.py of github.com/pytorch/vision."""
    crop_and_flip = [transforms.RandomResizedCrop(48, interpolation=BILINEAR), transforms.RandomHorizontalFlip()]
    to_float = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float), transforms.Normalize(MEAN, STD)]
    erasing = [transforms.RandomErasing(p=0.5)]
    theirs = transforms.Compose([*crop_and_flip, *POLICIES[policy], *to_float, *erasing])

    config = AugmentConfig(crop_size=48, flip=0.5, auto_augment=policy, random_erase=0.5)
    ours, replay = train_transform(config), Replay(monkeypatch)
    expected, pixels, boxes = [], [], []
    for image in random_images(100):
        expected.append(theirs(image).numpy().transpose(1, 2, 0))
        pixels.append(ours(image, replay))
        boxes.append(erase_box(replay, *pixels[-1].shape[:2], config.random_erase))
        assert replay.draws == []
    images = erase(Normalize(MEAN, STD)(jnp.asarray(np.stack(pixels))), jnp.asarray(np.stack(boxes)))
    # Two bytes next to each other are 0.017 apart.
    np.testing.assert_allclose(images, np.stack(expected), atol=2e-6)
    np.testing.assert_array_equal(images == 0, np.stack(expected) == 0)
    assert 30 < (np.stack(boxes)[:, 2] > 0).sum() < 70


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("policy", [name for name in POLICIES if name])
def test_a_policy_on_images_of_any_size_is_torchvisions(policy, mode, monkeypatch):
    _assert_same_bytes(AugmentConfig(auto_augment=policy), POLICIES[policy][0], monkeypatch, mode)


def test_a_policy_interpolates_as_the_crop_does(monkeypatch):
    crop = transforms.RandomResizedCrop(48, interpolation=BICUBIC)
    policy = autoaugment.TrivialAugmentWide(interpolation=BICUBIC)
    config = AugmentConfig(crop_size=48, auto_augment="ta_wide", interpolation="bicubic")
    _assert_same_bytes(config, transforms.Compose([crop, policy]), monkeypatch)


def test_a_view_is_what_vicregs_transform_makes_of_it(monkeypatch):
    """Crop, flip, jitter, grayscale, blur, solarize: augmentations.py of github.com/facebookresearch/vicreg."""
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(48, scale=(0.08, 1.0), interpolation=BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([PillowBlur()], p=0.5),
            transforms.RandomSolarize(128, p=0.2),
        ]
    )
    config = AugmentConfig(
        crop_size=48,
        flip=0.5,
        color_jitter=JITTER,
        grayscale=0.2,
        blur=BlurConfig(0.5),
        solarize=0.2,
        interpolation="bicubic",
    )
    _assert_same_bytes(config, theirs, monkeypatch)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("off", [None, "brightness", "contrast", "saturation", "hue"])
def test_jitter_is_torchvisions_with_and_without_each_part(off, mode, monkeypatch):
    strengths = {"brightness": 1.3, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
    strengths = {name: 0.0 if name == off else strength for name, strength in strengths.items()}
    jitter = transforms.RandomApply([transforms.ColorJitter(**strengths)], p=1.0)
    _assert_same_bytes(AugmentConfig(color_jitter=ColorJitterConfig(1.0, **strengths)), jitter, monkeypatch, mode)


def test_cifars_shift_and_flip_are_torchvisions(monkeypatch):
    theirs = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
    replay = Replay(monkeypatch)
    one = replay.integers
    monkeypatch.setattr(replay, "integers", lambda *bounds, size: [one(*bounds) for _ in range(size)])
    ours = train_transform(AugmentConfig(max_shift=4, flip=0.5))
    for image in random_images(100, smallest=32, largest=33):
        expected = np.asarray(theirs(image))
        np.testing.assert_array_equal(ours(image, replay), expected)
        assert replay.draws == []


def test_an_erased_box_is_torchvisions():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(100, 20, 31, 3)).astype(np.float32)
    boxes = np.stack([erase_box(rng, 20, 31, 0.7) for _ in images])
    ours = np.asarray(erase(jnp.asarray(images), jnp.asarray(boxes)))
    for image, box, after in zip(images, boxes, ours, strict=True):
        theirs = functional.erase(torch.from_numpy(image.transpose(2, 0, 1)), *box.tolist(), torch.zeros(1, 1, 1))
        np.testing.assert_array_equal(after, theirs.numpy().transpose(1, 2, 0))


def test_what_is_off_changes_nothing_and_draws_nothing():
    (image,) = random_images(1)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(train_transform(AugmentConfig())(image, rng), np.asarray(image))
    np.testing.assert_array_equal(erase_box(rng, image.height, image.width, 0.0), 0)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_an_image_of_another_mode_is_refused():
    with pytest.raises(ValueError, match="mode RGB or L, got RGBA"):
        train_transform(AugmentConfig())(Image.new("RGBA", (4, 4)), np.random.default_rng(0))
