"""How strong must VCReg be? Fashion-MNIST: trained on three kinds of things, probed on the ten classes.

Paper  does not have it
Ours   short: -0.7 ± 0.4 (L-BFGS), +3.2 ± 0.5 (AdamW), +1.9 ± 1.0 (nearest neighbours)
       long: -2.3 ± 0.2 (L-BFGS), +4.8 ± 0.5 (AdamW), +3.1 ± 0.3 (nearest neighbours)
Run    apt-get install dataset-fashion-mnist; python -m train prepare fashion_mnist
       python -m train run strength_fashion --point short; --point long; python -m train report strength
Cost   22 runs a length; at 16 pixels about 1 minute (short) and 3 minutes (long) each on one CPU core

The network is that of digits.py, so that the data alone differ. 10,000 images at 16 pixels with shifts and flips.
"short" ends where the accuracy on the three kinds levels off, "long" is four times that. Every arm has as many points:
the baseline four learning rates, VCReg four strengths.
"""

from dataclasses import replace

from configs import fashion_mnist, probes
from configs.strength_digits import get_config as of_digits
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import AdamW, Cosine, DataConfig, NearestNeighborsConfig, OptimizerConfig, Target
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg


def get_config() -> Grid:
    """The short training."""
    return sweep()["short"]


def sweep() -> dict[str, Grid]:
    """Two lengths."""
    data = replace(
        fashion_mnist.get_config().train.data,
        label="kind",
        augment=AugmentConfig(max_shift=2, flip=0.5),
        evaluation=EvalTransformConfig(resize=16),
        train_split="train[:10000]",
        validation_split="train[55000:]",
    )
    title = "Fashion-MNIST, {} steps: three kinds, then the ten classes"
    return {
        length: grid(f"strength_fashion_{length}", title.format(steps), data, steps)
        for length, steps in (("short", 400), ("long", 1600))
    }


def grid(name: str, title: str, data: DataConfig, steps: int) -> Grid:
    """The digits' network on `data`, four points an arm, probed on the label "label"."""
    digits = of_digits()
    optimizer = OptimizerConfig(AdamW(weight_decay=0.05), Cosine(4e-3, warmup_steps=steps // 10))
    train = replace(digits.train, data=data, optimizer=optimizer, steps=steps, eval_every=steps)
    alphas = (0.64, 2.56)
    return replace(
        digits,
        name=name,
        title=title,
        train=train,
        search=train,
        arms={
            "Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), alphas, (0.0025, 0.04)),
            "Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), alphas, (0.16, 2.56)),
        },
        search_seeds=(100,),
        seeds=(0, 1, 2),
        at_once=8,
        baseline_learning_rates=(2e-3, 4e-3, 8e-3, 16e-3),
        targets={
            "L-BFGS": Target(probes.PAPER),
            "AdamW": Target(replace(probes.SUBCLASSES, label="label")),
            "20-NN": Target(NearestNeighborsConfig("label")),
        },
    )
