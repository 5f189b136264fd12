"""How strong must VCReg be? CIFAR-10: trained on animal or vehicle, probed on the ten classes.

Paper  does not have it
Ours   not run
Run    python -m train prepare cifar10 --from FOLDER
       python -m train run strength_cifar10 --point short; --point long; python -m train report strength
Cost   22 runs a length; a trial of 1,600 steps took 5 minutes without VCReg on one core of a busy machine and reached
       89.5 % of the two kinds

The network and the candidates are those of strength_fashion.py, so that the data alone differ. 20,000 images at 16
pixels with shifts and flips.
"""

from dataclasses import replace

from configs import recipes, strength_fashion
from train.augment import AugmentConfig, EvalTransformConfig
from train.experiments.grid import Grid


def get_config() -> Grid:
    """The short training."""
    return sweep()["short"]


def sweep() -> dict[str, Grid]:
    """Two lengths."""
    data = replace(
        recipes.CIFAR10,
        label="kind",
        augment=AugmentConfig(max_shift=2, flip=0.5),
        evaluation=EvalTransformConfig(resize=16),
        train_split="train[:20000]",
        validation_split="train[45000:]",
        test_split="test",
    )
    title = "CIFAR-10, {} steps: animal or vehicle, then the ten classes"
    return {
        length: strength_fashion.grid(f"strength_cifar10_{length}", title.format(steps), data, steps)
        for length, steps in (("short", 600), ("long", 2400))
    }
