"""Table 4, VICReg on ImageNet with VCReg in the backbone: 100 epochs without labels, then nine probes.

Paper  in `PAPER` below; e.g. Aircraft: 51.2 -> 54.2 %
Ours   not run: it needs the nine data sets and accelerators; table4_small.py is what a CPU can do
Run    python -m train prepare imagenet --from FOLDER, and likewise the sets that configs/probes.py names;
       python -m train run table4_vicreg; python -m train report table4
Cost   6 runs of 100 epochs of 2 views of 4.1 GMACs forward

alpha and beta: the paper does not name the point it chose; (0.64, 0.08) is in two public copies of its code. One
candidate for either column, so neither is tuned.
"""

from configs import recipes
from configs.table4_simclr import table4
from train.config import Experiment

PAPER = {
    "none": (65.2, 41.7, 48.2, 61.0, 27.3, 51.2, 79.1, 74.3, 65.4),
    "VCReg": (66.3, 41.4, 49.6, 61.6, 29.3, 54.2, 79.7, 74.5, 66.5),
}


def get_config() -> Experiment:
    """Without and with VCReg at the output of every block."""
    return table4("vicreg", "VICReg", recipes.vicreg(), PAPER)
