"""Table 3 in small: CIFAR-10-LT with imbalance 100 at 16 pixels, ResNet-32, a short schedule.

Paper  ResNet-32, 32 pixels, 100 epochs, test: 69.6 -> 71.2 %
Ours   16 pixels, 2.5 epochs: 28.55 ± 1.03 % without, 29.64 ± 0.95 % with VCReg (n = 3): +1.09 ± 0.81
Run    python -m train prepare cifar10 --from FOLDER; python -m train run table3_small_cifar10
Cost   10 runs of 160 steps, then 6 of 480, of 64 images: half an hour on one CPU core

A size at which one CPU core does both data sets in an hour: images shrunk to 16 pixels, 2.5 epochs on all training
images and 0.9 in the search, of whose grid a fifth is tried. The rest is Appendix C.3's.
"""

from dataclasses import replace

from configs.table3_cifar10_lt import get_config as at_paper_scale
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import Cosine, TrainConfig
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg


def get_config() -> Grid:
    """The grid's corners with one seed, then both arms' best point on all training images with three others."""
    config = at_paper_scale()
    return replace(
        config,
        name="table3_small_cifar10",
        title="Table 3 in small: CIFAR-10-LT at 16 pixels, ResNet-32, 480 steps of 64 images",
        train=shortened(config.train, 480),
        search=shortened(config.search, 160),
        arms={"VCReg": Strengths(Sites(block=VCReg()), (1.28, 0.16), (0.16, 0.01))},
        search_seeds=(100,),
        at_once=10,
        vmapped=1,
        steps_per_call=16,
    )


def shortened(train: TrainConfig, steps: int) -> TrainConfig:
    """The recipe at half the resolution, a quarter of the batch, and a tenth of the steps to warm up as before."""
    data = replace(train.data, evaluation=EvalTransformConfig(resize=16), augment=AugmentConfig(max_shift=2, flip=0.5))
    schedule = Cosine(0.016, warmup_steps=steps // 10)
    optimizer = replace(train.optimizer, schedule=schedule)
    return replace(train, data=data, optimizer=optimizer, steps=steps, batch_size=64, save_every=16)
