"""Table 2 in small: pretrained on CIFAR-100's 100 classes, probed on four data sets of other images.

Paper  ResNet-50 on ImageNet, e.g. Cars: none 43.6, DeCov 45.7, WLD-Reg 43.9, VCReg 54.1 %
Ours   CIFAR-10: none 39.34 ± 0.50, DeCov 37.08 ± 0.56, WLD-Reg 39.01 ± 0.52, VCReg 39.95 ± 0.79 % (n = 3)
Run    python -m train prepare cifar100 --from FOLDER, and likewise cifar10, flowers89, caltech97 and dtd10;
       python -m train run table2_small
Cost   20 runs of about a minute on one CPU core

flowers89, caltech97 and dtd10 are parts of Flowers-102, Caltech-101 and DTD at 64x64, brought to 32x32, with splits of
their own: nothing here compares with published numbers. The network is that of table5_small.py, trained on 10,000
images for 300 steps. Each column has two candidates, tried with one seed and compared on the targets' validation
images, on average: none has two weight decays, VCReg two points of the paper's grid, WLD-Reg its default weights and a
tenth of them, DeCov a tenth and a hundredth of its default, with which the network learned nothing (0.5 % of the
validation images; chance is 1 %).
"""

from dataclasses import replace

from configs import recipes
from configs.table5_small import DATA, NONE, PROBE, STRENGTHS, training
from configs.table5_small import get_config as table5
from train.augment import EvalTransformConfig
from train.config import Candidate, DataConfig, Experiment, Target
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
    return Target(replace(PROBE, metric=metric), data, held_out=0.2)


PRETRAINING = replace(DATA, label="label", train_split="train[:10000]", validation_split="train[45000:47500]")
CIFAR10 = replace(recipes.CIFAR10, train_split="train[:5000]", validation_split="train[45000:47500]")
TARGETS = {
    "CIFAR-10": Target(PROBE, CIFAR10),
    "Flowers-89": _target("flowers89", "mean_per_class"),
    "Caltech-97": _target("caltech97", "mean_per_class"),
    "DTD-10": _target("dtd10", "top1"),
}


ARMS = {
    "none": NONE,
    "DeCov": tuple(Candidate(Sites(features=DeCov(weight))) for weight in (1e-2, 1e-3)),
    "WLD-Reg": tuple(Candidate(Sites(features=WLDReg(weight, weight))) for weight in (1e-3, 1e-4)),
    "VCReg": tuple(Candidate(Sites(block=reg)) for reg in STRENGTHS),
}


def get_config() -> Experiment:
    """The four columns; DeCov and WLD-Reg at the input of the classifier."""
    return replace(
        table5(),
        name="table2_small",
        train=training(PRETRAINING, 300),
        arms=ARMS,
        targets=TARGETS,
        title="Table 2 in small: CIFAR-100 (10,000 images, 300 steps), then other images at 32 px",
    )
