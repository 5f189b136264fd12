"""Table 2 in small: pretrained on CIFAR-100's 100 classes, probed on four data sets of other images.

Paper  ResNet-50 on ImageNet, e.g. Cars: none 43.6, DeCov 45.7, WLD-Reg 43.9, VCReg 54.1 %
Ours   CIFAR-10: none 36.23 ± 0.31, DeCov 34.95 ± 0.94, WLD-Reg 35.74 ± 0.95, VCReg 37.30 ± 0.23 % (n = 3)
Run    python -m train prepare cifar100 --from FOLDER, and likewise cifar10, flowers89, caltech97 and dtd10;
       python -m train run configs/table2_small.py
Cost   12 runs of about half a minute on one CPU core

flowers89, caltech97 and dtd10 are parts of Flowers-102, Caltech-101 and DTD at 64x64, brought to 32x32, with splits of
their own: nothing here compares with published numbers. The network is that of table5_small.py, trained for half as
many steps. No column is tuned on these data: WLD-Reg has its defaults, VCReg the point of the paper's grid that
table5_small.py chose, and DeCov a hundredth of its default, with which the network learned nothing (0.5 % of the
validation images after training with seed 0; chance is 1 %).
"""

from dataclasses import replace

from configs import recipes
from configs.table5_small import PROBE, STRENGTHS
from configs.table5_small import get_config as table5
from train.augment import EvalTransformConfig
from train.config import Candidate, Cosine, DataConfig, Target, Transfer
from vcreg_jax import DeCov, Sites, WLDReg


def _target(name: str, metric: str) -> Target:
    data = DataConfig(
        name,
        label="label",
        mean=recipes.CIFAR100_SUPERCLASSES.mean,
        std=recipes.CIFAR100_SUPERCLASSES.std,
        evaluation=EvalTransformConfig(resize=32, crop=32),
        in_memory=True,
    )
    return Target(data, replace(PROBE, metric=metric), held_out=0.2)


CIFAR10 = replace(recipes.CIFAR10, train_split="train[:5000]", validation_split="train[45000:47500]")
TARGETS = {
    "CIFAR-10": Target(CIFAR10, PROBE),
    "Flowers-89": _target("flowers89", "mean_per_class"),
    "Caltech-97": _target("caltech97", "mean_per_class"),
    "DTD-10": _target("dtd10", "top1"),
}


ARMS = {
    "none": Sites(),
    "DeCov": Sites(features=DeCov(weight=1e-3)),
    "WLD-Reg": Sites(features=WLDReg()),
    "VCReg": Sites(block=STRENGTHS[0]),
}


def get_config() -> Transfer:
    """The four columns; DeCov and WLD-Reg at the input of the classifier."""
    small = table5()
    return replace(
        small,
        name="table2_small",
        train=replace(
            small.train,
            data=replace(small.train.data, label="label"),
            optimizer=replace(small.train.optimizer, schedule=Cosine(4e-3, warmup_steps=15)),
            steps=150,
            eval_every=150,
        ),
        arms={arm: (Candidate(sites),) for arm, sites in ARMS.items()},
        targets=TARGETS,
        title="Table 2 in small: CIFAR-100 (10,000 images, 150 steps), then other images at 32 px",
    )
