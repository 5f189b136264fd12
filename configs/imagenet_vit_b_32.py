r"""ViT-B/32 on ImageNet by torchvision's recipe of 300 epochs.

Paper  Table 2: 75.9 % without, 76.3 % with VCReg
Ours   not run: it needs ImageNet and accelerators. Begun on synthetic images (second command)
       and, 3 steps of 12 images each, on a folder of JPEGs.
Run    python -m train prepare imagenet --from FOLDER; python -m train run imagenet_vit_b_32
       python -m train run imagenet_vit_b_32 --train.data.name synthetic \
           --train.data.synthetic-images 64 --train.batch-size 256 --train.steps 20 \
           --train.optimizer.schedule.warmup-steps 5
Cost   300 epochs of 4.4 GMACs an image forward

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
        name="imagenet_vit_b_32",
        title="ViT-B/32 on ImageNet without and with VCReg",
        train=recipes.vit_b_32(),
        arms=arms,
        seeds=(0,),
        paper={"baseline": {"pretraining": 75.9}, "VCReg": {"pretraining": 76.3}},
    )
