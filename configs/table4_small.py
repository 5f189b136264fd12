"""Table 4 in small: SimCLR and VICReg on CIFAR-10 without labels, with and without VCReg in the backbone, then probed.

Paper  ResNet-50, ImageNet, e.g. iNaturalist 2018: SimCLR 37.2 -> 41.3, VICReg 41.7 -> 41.4 %
Ours   SimCLR 36.54 ± 0.74 -> 36.12 ± 0.15, VICReg 34.07 ± 0.77 -> 33.79 ± 0.76 % (n = 3)
Run    python -m train prepare cifar10 --from FOLDER; python -m train run table4_small --point simclr
       python -m train run table4_small --point vicreg; python -m train report table4
Cost   12 runs of about a minute on one CPU core

A size that one CPU core does in a quarter of an hour: a ConvNeXt of 0.25 M parameters, 150 steps of 128 pairs of views.
The views are the papers' at 32 pixels, without the blur, which SimCLR leaves out on CIFAR-10 (its Appendix B.9, which
has half the strength of colour and a temperature of 0.5, too). AdamW and not LARS, which is made for batches of
thousands; the network is one that AdamW trains. One candidate for every column, so none is tuned. Validation accuracy
in training is that of nearest neighbours.
"""

from dataclasses import replace

from configs import recipes
from configs.table5_small import PROBE
from train.augment import AugmentConfig, BlurConfig
from train.config import (
    AdamW,
    Candidate,
    Cosine,
    Experiment,
    JointEmbedding,
    ModelConfig,
    OptimizerConfig,
    Target,
    TrainConfig,
)
from vcreg_jax import Sites, VCReg
from vcreg_jax.losses import NTXent, VICReg

SIMCLR_JITTER = replace(recipes.SIMCLR_VIEW.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
SIMCLR_VIEW = replace(recipes.SIMCLR_VIEW, crop_size=32, color_jitter=SIMCLR_JITTER, blur=BlurConfig())
VICREG_VIEW = replace(recipes.VICREG_VIEW, crop_size=32, blur=BlurConfig())
PROBED = replace(recipes.CIFAR10, train_split="train[:10000]", validation_split="train[45000:47500]", test_split="test")
ARMS = {"none": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))}


def get_config() -> Experiment:
    """SimCLR's columns."""
    return sweep()["simclr"]


def sweep() -> dict[str, Experiment]:
    """The table's two methods."""
    simclr = JointEmbedding(NTXent(temperature=0.5), projector=(256, 64), views_together=True)
    vicreg = JointEmbedding(VICReg(), projector=(512, 512), views_together=False)
    return {
        "simclr": _method("simclr", "SimCLR", simclr, SIMCLR_VIEW),
        "vicreg": _method("vicreg", "VICReg", vicreg, VICREG_VIEW),
    }


def _method(name: str, title: str, objective: JointEmbedding, view: AugmentConfig) -> Experiment:
    data = replace(PROBED, train_split="train[:45000]", augment=view, second_view=view, in_memory=False)
    return Experiment(
        name=f"table4_small_{name}",
        title=f"Table 4 in small: {title} on CIFAR-10 (150 steps of 128 pairs), then its classes",
        train=TrainConfig(
            data=data,
            model=ModelConfig("convnext_cifar"),
            optimizer=OptimizerConfig(AdamW(weight_decay=0.05), Cosine(2e-3, warmup_steps=15)),
            steps=150,
            batch_size=128,
            joint_embedding=objective,
            monitor_images=2000,
            eval_every=150,
        ),
        arms={arm: (Candidate(sites),) for arm, sites in ARMS.items()},
        targets={"CIFAR-10": Target(PROBE, PROBED)},
        seeds=(0, 1, 2),
        tuning_seed=100,
    )
