r"""Table 4, VICReg on ImageNet with VCReg in the backbone: ResNet-50, 100 epochs, no labels.

Paper  linear probe without and with VCReg, %: ImageNet 65.2 -> 66.3, iNaturalist 2018 41.7 -> 41.4,
       Places205 48.2 -> 49.6, Food 61.0 -> 61.6, Cars 27.3 -> 29.3, Aircraft 51.2 -> 54.2, Pets 79.1 -> 79.7,
       Flowers 74.3 -> 74.5, DTD 65.4 -> 66.5 %
Ours   not run: it needs ImageNet and accelerators
Run    python -m train prepare imagenet --from FOLDER; python -m train run configs/table4_vicreg.py
       python -m train run configs/table4_vicreg.py --train.data.name synthetic --train.data.synthetic-images 64 \
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
        "table4_vicreg", recipes.vicreg(), arms, paper="ImageNet, linear probe: none 65.2 %, VCReg 66.3 %"
    )
