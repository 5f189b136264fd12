r"""ConvNeXt-T on ImageNet by torchvision's recipe of 600 epochs.

Paper  Table 2: 82.5 % without, 82.4 % with VCReg
Ours   not run: it needs ImageNet and accelerators. Begun on synthetic images (second command) only.
Run    python -m train prepare imagenet --from FOLDER; python -m train run imagenet_convnext_tiny
       python -m train run imagenet_convnext_tiny --train.data.name synthetic \
           --train.data.synthetic-images 64 --train.batch-size 64 --train.steps 20 \
           --train.optimizer.schedule.warmup-steps 5
Cost   600 epochs of 4.5 GMACs an image forward at 224 (2.8 at the 176 it trains at)

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
        name="imagenet_convnext_tiny",
        title="ConvNeXt-T on ImageNet without and with VCReg",
        train=recipes.convnext_tiny(),
        arms=arms,
        seeds=(0,),
        paper={"baseline": {"pretraining": 82.5}, "VCReg": {"pretraining": 82.4}},
    )
