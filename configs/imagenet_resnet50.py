r"""ResNet-50 on ImageNet, the network of most of the paper's tables.

Paper  Table 2: 76.1 % without, 76.3 % with VCReg
Ours   not run: it needs ImageNet and accelerators. Begun on synthetic images (second command) only.
Run    python -m train prepare imagenet --from FOLDER; python -m train run imagenet_resnet50
       python -m train run imagenet_resnet50 --train.data.name synthetic \
           --train.data.synthetic-images 64 --train.batch-size 16 --train.steps 20 --train.model.norm-scope 2
Cost   90 epochs of 4.1 GMACs an image forward: some 1.4e18 multiply-adds an arm

alpha and beta: the paper gives a grid (Appendix A) and not the point it chose; (0.64, 0.08) is in two public copies
of its code. `configs.recipes.sweep()` has the whole grid as arms.
"""

from configs import recipes
from train.config import Experiment
from vcreg_jax import Sites, VCReg


def get_config() -> Experiment:
    """The recipe of torchvision's weights without and with VCReg at the output of every block."""
    arms = {"baseline": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))}
    return Experiment(
        name="imagenet_resnet50",
        title="ResNet-50 on ImageNet without and with VCReg",
        train=recipes.resnet50(),
        arms=arms,
        seeds=(0,),
        paper={"baseline": {"pretraining": 76.1}, "VCReg": {"pretraining": 76.3}},
    )
