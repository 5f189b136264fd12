"""Random changes of training images.

Each image's own changes happen on the host, with Pillow, from the generator of that image; bytes come out:

    augment = train_transform(config.augment)           # once; a wrong config is found here
    pixels = augment(image, rng)                        # PIL image, RGB or L -> uint8 (h, w, c)
    box = erase_box(rng, *pixels.shape[:2], config.augment.random_erase)    # int32 (4,), a field of the record
    pixels = eval_transform(config.evaluation)(image)   # the same without chance, for evaluation

The batch's changes happen on the device, inside the step, in torchvision's order:

    images = normalize(batch["image"])
    images = erased(images, batch["erase_box"])         # only with random erasing
    targets = jax.nn.one_hot(batch["label"], num_classes)
    images, targets = mixed(config.mix, images, targets, key)   # a key of the step that nothing else uses
    loss = vc.losses.cross_entropy(logits, targets, label_smoothing).mean()     # mix first, then smooth
    accuracy = vc.metrics.correct(logits, targets.argmax(axis=-1)).mean()       # of the larger share

`check_mix(config.mix, batch_size)` finds a batch that does not divide into groups before training starts.
"""

from train.augment.config import (
    AugmentConfig,
    BlurConfig,
    ColorJitterConfig,
    EvalTransformConfig,
    MixConfig,
    check_mix,
)
from train.augment.geometry import erase_box
from train.augment.mix import erase, mix_pairs
from train.augment.shift import Moves, draw_moves, move, shift
from train.augment.transforms import eval_transform, train_transform

__all__ = [
    "AugmentConfig",
    "BlurConfig",
    "ColorJitterConfig",
    "EvalTransformConfig",
    "MixConfig",
    "Moves",
    "check_mix",
    "draw_moves",
    "erase",
    "erase_box",
    "eval_transform",
    "mix_pairs",
    "move",
    "shift",
    "train_transform",
]
