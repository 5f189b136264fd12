"""How strong must VCReg be? CIFAR-10: trained on animal or vehicle, probed on the ten classes.

Paper  does not have it
Ours   short: +0.8 ± 0.7 (L-BFGS), +1.7 ± 0.6 (AdamW), +2.9 ± 0.5 (nearest neighbours)
       long: +0.4 ± 0.8 (L-BFGS), +1.3 ± 0.5 (AdamW), +2.3 ± 0.3 (nearest neighbours)
Run    python -m train prepare cifar10 --from FOLDER
       python -m train run strength_cifar10 --point short; --point long; python -m train report strength
Cost   21 runs a length; 12 of 600 steps that choose, 9 of 1,500 or 3,000 steps; 1,500 steps without VCReg are
       3 minutes of one CPU core

ResNet-8 reaches 92.6 % of the two kinds in 1,500 steps, which are 4.3 epochs of 45,000 images, and 93.5 % in twice as
many ("long"). Images have 16 pixels, with shifts and flips. The strengths are chosen by runs of 600 steps. Every arm
has four points, as in strength_fashion.py. Algorithm 1's betas are Eq. 4's divided by about a thousand, since 2,048 to
32,768 positions count as samples.
"""

from dataclasses import replace

from configs import recipes, strength_fashion
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import Cosine, ModelConfig
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg

RATE = 8e-3


def get_config() -> Grid:
    """The short training."""
    return sweep()["short"]


def sweep() -> dict[str, Grid]:
    """Two lengths."""
    return {length: _grid(length, steps) for length, steps in (("short", 1500), ("long", 3000))}


def _grid(length: str, steps: int) -> Grid:
    data = replace(
        recipes.CIFAR10,
        label="kind",
        augment=AugmentConfig(max_shift=2, flip=0.5),
        evaluation=EvalTransformConfig(resize=16),
        train_split="train[:45000]",
        validation_split="train[45000:]",
        test_split="test",
    )
    title = f"CIFAR-10, {steps} steps: animal or vehicle, then the ten classes"
    grid = strength_fashion.grid(f"strength_cifar10_{length}", title, data, steps)
    train = replace(
        grid.train,
        model=ModelConfig("resnet8"),
        optimizer=replace(grid.train.optimizer, schedule=Cosine(RATE, warmup_steps=steps // 10)),
    )
    tried = replace(train.optimizer, schedule=Cosine(RATE, warmup_steps=60))
    alphas = (0.64, 2.56)
    return replace(
        grid,
        train=train,
        search=replace(train, steps=600, eval_every=600, optimizer=tried),
        arms={
            "Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), alphas, (0.0001, 0.0025)),
            "Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), alphas, (0.16, 2.56)),
        },
        learning_rates=(RATE,),
    )
