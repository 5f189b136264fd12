r"""Table 4, SimCLR on ImageNet with VCReg in the backbone: ResNet-50, 100 epochs, no labels.

Paper  linear probe without and with VCReg, %: ImageNet 67.2 -> 67.1, iNaturalist 2018 37.2 -> 41.3,
       Places205 52.1 -> 52.3, Food 66.4 -> 67.7, Cars 35.7 -> 40.6, Aircraft 62.3 -> 61.9, Pets 76.3 -> 76.6,
       Flowers 82.6 -> 83.6, DTD 68.1 -> 69.0 %
Ours   not run: it needs ImageNet and accelerators
Run    python -m train prepare imagenet --from FOLDER; python -m train run configs/table4_simclr.py
       python -m train run configs/table4_simclr.py --train.data.name synthetic --train.data.synthetic-images 64 \
           --train.batch-size 8 --train.steps 3 --train.optimizer.schedule.warmup-steps 1
Cost   100 epochs of 2 views of 4.1 GMACs forward

alpha and beta: the paper does not name the point it chose; (0.64, 0.08) is in two public copies of its code.
"""

from configs import recipes
from train.config import Pretraining
from vcreg_jax import Sites, VCReg


def get_config() -> Pretraining:
    """Without and with VCReg at the output of every block."""
    arms = {"baseline": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))}
    return Pretraining(
        "table4_simclr", recipes.simclr(), arms, paper="ImageNet, linear probe: none 67.2 %, VCReg 67.1 %"
    )
