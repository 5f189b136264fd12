"""Table 4, SimCLR on ImageNet with VCReg in the backbone: 100 epochs without labels, then nine probes.

Paper  in `PAPER` below; e.g. iNaturalist 2018: 37.2 -> 41.3 %
Ours   not run: it needs the nine data sets and accelerators; table4_small.py is what a CPU can do
Run    python -m train prepare imagenet --from FOLDER, and likewise the sets that configs/probes.py names;
       python -m train run table4_simclr; python -m train report table4
Cost   6 runs of 100 epochs of 2 views of 4.1 GMACs forward

alpha and beta: the paper does not name the point it chose; (0.64, 0.08) is in two public copies of its code. One
candidate for either column, so neither is tuned.
"""

from configs import probes, recipes
from train.config import Experiment, TrainConfig
from vcreg_jax import Sites, VCReg

PAPER = {
    "none": (67.2, 37.2, 52.1, 66.4, 35.7, 62.3, 76.3, 82.6, 68.1),
    "VCReg": (67.1, 41.3, 52.3, 67.7, 40.6, 61.9, 76.6, 83.6, 69.0),
}


def get_config() -> Experiment:
    """Without and with VCReg at the output of every block."""
    return table4("simclr", "SimCLR", recipes.simclr(), PAPER)


def table4(name: str, method: str, train: TrainConfig, paper: dict[str, tuple[float, ...]]) -> Experiment:
    """Both arms of one method, then the nine probes, in whose order the numbers of `paper` stand."""
    return Experiment(
        name=f"table4_{name}",
        title=f"Table 4: {method}, ResNet-50, ImageNet without labels, then nine data sets",
        train=train,
        arms={"none": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))},
        targets=probes.ALL,
        seeds=(0, 1, 2),
        paper={arm: dict(zip(probes.ALL, values, strict=True)) for arm, values in paper.items()},
    )
