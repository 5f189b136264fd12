"""Fine-tuning: from CIFAR-10's published ResNet-32 to CIFAR-100's superclasses, without and with VCReg.

Paper  not in it; its "none" columns of Table 2 probe published weights as they are: the point "given"
Ours   superclasses 46.24 ± 0.93 % fine-tuned, 18.40 ± 1.02 % from scratch; probe of the classes 32.69 ± 0.71 and
       12.78 ± 0.38 %, 29.52 % of the network that is not trained (n = 3; with VCReg, n = 1: 44.95 and 34.45 %)
Run    python -m train prepare cifar100 --from FOLDER, and likewise cifar10;
       python -m train run finetune_cifar100 [--point scratch|given]
       python -m train runs finetune_cifar100 finetune_cifar100_scratch
Cost   10 networks of about 3 minutes of one CPU core, probes included

The weights, 7.37 % error on CIFAR-10, are resnet32-d509ac18.th of github.com/akamaster/pytorch_resnet_cifar10, folder
pretrained_models; put them into runs/weights. They expect ImageNet's mean and standard deviation. All of them are
taken but the classifier, which has ten classes there. 5,000 training images and 200 steps of 32: few of both is where
fine-tuning is worth most. For time 4,000 other training images test; `--train.data.test-split test` takes the official
ones. The probe is of the 100 classes.
"""

from dataclasses import replace

from configs import recipes, table5_small
from train.config import (
    AdamW,
    Candidate,
    Cosine,
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    Target,
    TrainConfig,
)
from vcreg_jax import Sites, VCReg

WEIGHTS = "runs/weights/resnet32-d509ac18.th"


def _part(data: DataConfig) -> DataConfig:
    """5,000 images to train and 1,000 to validate, as the weights expect them."""
    mean, std = recipes.IMAGENET.mean, recipes.IMAGENET.std
    return replace(data, mean=mean, std=std, train_split="train[:5000]", validation_split="train[45000:46000]")


SUPERCLASSES = replace(_part(recipes.CIFAR100_SUPERCLASSES), test_split="train[46000:]")
CIFAR10 = replace(_part(recipes.CIFAR10), test_split="test")


def get_config() -> Experiment:
    """From the published weights, without a regularizer and with VCReg at the output of every block."""
    return Experiment(
        name="finetune_cifar100",
        title="CIFAR-100's superclasses from CIFAR-10's ResNet-32, then 100 classes (5,000 images, 200 steps)",
        train=TrainConfig(
            data=SUPERCLASSES,
            model=ModelConfig("resnet32"),
            optimizer=OptimizerConfig(AdamW(weight_decay=0.05), Cosine(2e-3, warmup_steps=20)),
            steps=200,
            batch_size=32,
            initial_weights=WEIGHTS,
            eval_every=200,
        ),
        arms={"none": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))},
        targets={"CIFAR-100": Target(table5_small.PROBE)},
        seeds=(0, 1, 2),
    )


def sweep() -> dict[str, Experiment]:
    """Fine-tuning; the same from weights that the seed draws; and the published network as it is, not trained at all.

    "given" is how the paper's Table 2 has its "none": the accuracy on CIFAR-10 is the file's own, and its features
    are probed.
    """
    tuned = get_config()
    scratch = replace(
        tuned,
        name="finetune_cifar100_scratch",
        title="CIFAR-100's superclasses from scratch, then 100 classes (5,000 images, 200 steps)",
        train=replace(tuned.train, initial_weights=""),
        arms={"none": Sites()},
    )
    given = replace(
        tuned,
        name="finetune_cifar100_given",
        title="CIFAR-10's published ResNet-32 as it is, on CIFAR-100's classes",
        train=replace(tuned.train, data=CIFAR10, initial_weights=""),
        arms={"none": (Candidate(given=WEIGHTS),)},
        targets={"CIFAR-100": Target(table5_small.PROBE, SUPERCLASSES)},
        seeds=(0,),
    )
    return {"tuned": tuned, "scratch": scratch, "given": given}
