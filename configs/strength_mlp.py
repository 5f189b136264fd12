"""Does VCReg help a network without normalization? A perceptron of six layers on CIFAR-100's classes.

Paper  does not have it; Weak-SIGReg's authors do (arXiv 2603.05924, `cifar100/log` of kreasof-ai/sigreg): six layers,
       1,024 wide, 50,000 images, 400 epochs: 26.8 % without a regularizer, 42.2 % with theirs
Ours   not run
Run    python -m train prepare cifar100 --from FOLDER; python -m train run strength_mlp
Cost   28 runs of 7,800 steps

A regularizer acts on every hidden layer's output before its ReLU, as theirs does. SGD at a constant rate, without
momentum or weight decay, gradients clipped to norm 1, batches of 128, shifts and flips are theirs, too. Smaller here:
512 wide, 16 pixels, 10,000 images, 100 epochs. Every arm has four points, tried with one seed.
"""

from dataclasses import replace

from configs import recipes
from train.augment import AugmentConfig, EvalTransformConfig
from train.config import SGD, ModelConfig, OptimizerConfig, StepDecay, TrainConfig
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg, WeakSIGReg

STEPS = 7800
RATE = 0.1


def get_config() -> Grid:
    """No regularizer, VCReg by both conventions, and Weak-SIGReg."""
    data = replace(
        recipes.CIFAR100,
        augment=AugmentConfig(max_shift=2, flip=0.5),
        evaluation=EvalTransformConfig(resize=16),
        train_split="train[:10000]",
        validation_split="train[45000:]",
        test_split="test",
    )
    train = TrainConfig(
        data=data,
        model=ModelConfig("mlp6_512", image_size=16),
        optimizer=OptimizerConfig(SGD(0.0, momentum=0.0), StepDecay(RATE, every_steps=STEPS), clip_norm=1.0),
        steps=STEPS,
        batch_size=128,
        eval_every=STEPS,
        save_every=600,
    )
    alphas = (0.64, 2.56)
    return Grid(
        name="strength_mlp",
        title="CIFAR-100: 100 classes by a perceptron without normalization",
        train=train,
        search=train,
        arms={
            "Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), alphas, (0.01, 0.16)),
            "Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), alphas, (0.16, 2.56)),
            "Weak-SIGReg": Strengths(Sites(block=WeakSIGReg(1.0)), (0.01, 0.1, 1.0, 10.0), (0.0,)),
        },
        learning_rates=(RATE,),
        baseline_learning_rates=(0.05, 0.1, 0.2, 0.4),
        search_seeds=(100,),
        seeds=(0, 1, 2),
        at_once=8,
        vmapped=1,
        steps_per_call=50,
    )
