"""The training recipes that the paper follows, each stated once; the other configs use them.

torchvision's are those of its README and scripts (pytorch/vision, references/classification: README.md, train.py,
presets.py, sampler.py, utils.py, transforms.py), with which its weights were trained. Appendix A and C are the paper's.

Departs from torchvision's scripts: epochs follow each other without a gap, where they end each with a smaller batch
(ResNet-50: 18 of 32 images a GPU, ViT: 192 of 256) and leave the last few images of each permutation out; global
norms are clipped without their 1e-6; ViT computes in bfloat16 in place of float16 with loss scaling.
"""

import math
from dataclasses import replace

from train.augment import AugmentConfig, BlurConfig, ColorJitterConfig, EvalTransformConfig, MixConfig
from train.config import (
    LARS,
    SGD,
    AdamW,
    Cosine,
    DataConfig,
    EMAConfig,
    JointEmbedding,
    ModelConfig,
    OptimizerConfig,
    StepDecay,
    TrainConfig,
)
from train.trainer.ema import adjusted_decay
from vcreg_jax import Sites, VCReg, losses

# The paper's grid, Appendix A.
ALPHAS = (1.28, 0.64, 0.32, 0.16)
BETAS = (0.16, 0.08, 0.04, 0.02, 0.01)

IMAGENET = DataConfig(
    name="imagenet",
    label="label",
    mean=(0.485, 0.456, 0.406),  # presets.py
    std=(0.229, 0.224, 0.225),
    augment=AugmentConfig(crop_size=224, flip=0.5),  # train.py: --train-crop-size 224, --hflip-prob 0.5
    evaluation=EvalTransformConfig(resize=256, crop=224),  # train.py: --val-resize-size 256, --val-crop-size 224
    test_split="validation",  # the labels of its test images are not public
)


def resnet50() -> TrainConfig:
    """torchvision's ResNet-50 V1: 76.130 % top-1, of which reruns reach 75.4 to 75.9 (pytorch/vision #5593)."""
    epoch = 5005  # steps of 256 images, the last of 8 x 18
    return TrainConfig(
        data=IMAGENET,
        model=ModelConfig("resnet50", norm_scope=8),  # statistics of each GPU's 32 images, no SyncBN
        optimizer=OptimizerConfig(
            SGD(weight_decay=1e-4),  # on all parameters, those of norms too
            StepDecay(0.1, every_steps=30 * epoch),  # --lr 0.1 --lr-step-size 30
        ),
        steps=90 * epoch,
        batch_size=8 * 32,
        eval_every=epoch,
        save_every=epoch,
        log_every=100,
    )


def convnext_tiny() -> TrainConfig:
    """torchvision's ConvNeXt-T: 82.520 % top-1; a rerun reported 81.43 (pytorch/vision #7605)."""
    epoch, epochs, batch = 1251, 600, 16 * 64
    return TrainConfig(
        data=replace(
            IMAGENET,
            # --train-crop-size 176 --auto-augment ta_wide --random-erase 0.1
            augment=AugmentConfig(crop_size=176, flip=0.5, auto_augment="ta_wide", random_erase=0.1),
            evaluation=EvalTransformConfig(
                resize=236, crop=224
            ),  # README prints 232, the weights' entry and PR 5197 236
            repeats=4,  # --ra-sampler --ra-reps 4
        ),
        model=ModelConfig("convnext_tiny", stochastic_depth=0.1),  # the model's default
        optimizer=OptimizerConfig(
            AdamW(weight_decay=0.05),  # --norm-weight-decay 0.0: biases and layer scales are decayed
            Cosine(1e-3, 5 * epoch, warmup_start=0.01, hold_steps=epoch),  # stepped once an epoch
        ),
        steps=epochs * epoch,
        batch_size=batch,
        label_smoothing=0.1,
        mix=MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0, group_size=64),  # by GPU
        ema=_ema(batch, epochs, epoch, warmup_epochs=5),
        eval_every=epoch,
        save_every=epoch,
        log_every=100,
    )


def vit_b_32() -> TrainConfig:
    """torchvision's ViT-B/32: 75.912 % top-1."""
    epoch, epochs, batch = 313, 300, 16 * 256
    return TrainConfig(
        data=replace(
            IMAGENET,
            augment=AugmentConfig(crop_size=224, flip=0.5, auto_augment="imagenet"),  # AutoAugment's policy
            repeats=3,  # --ra-sampler, whose default is 3
        ),
        model=ModelConfig("vit_b_32", dtype="bfloat16"),  # --amp
        optimizer=OptimizerConfig(
            AdamW(weight_decay=0.3, decay_norms=True),  # on all parameters, embeddings and biases too
            Cosine(3e-3, 30 * epoch, warmup_start=0.033, hold_steps=epoch),
            clip_norm=1.0,
        ),
        steps=epochs * epoch,
        batch_size=batch,
        label_smoothing=0.11,
        mix=MixConfig(mixup_alpha=0.2, cutmix_alpha=1.0, group_size=256),
        ema=_ema(batch, epochs, epoch, warmup_epochs=30),
        eval_every=epoch,
        save_every=epoch,
        log_every=100,
    )


def convnext_atto(epochs: int = 90, peak_learning_rate: float = 0.016) -> TrainConfig:
    """The paper's ConvNeXt-Atto: 90 epochs (Appendix A) or 200 (superclasses), rates 0.016 and 0.008.

    Unstated there: crops, policies, smoothing, mixing, averaging, and whether the schedule moves once a step or once
    an epoch. Here: torchvision's plain crop and flip, nothing else, every step.
    """
    epoch = 313  # steps of 4096 images
    return TrainConfig(
        data=IMAGENET,
        model=ModelConfig("convnext_atto"),
        optimizer=OptimizerConfig(
            AdamW(weight_decay=0.05),  # norms exempt
            Cosine(peak_learning_rate, warmup_steps=5 * epoch),
        ),
        steps=epochs * epoch,
        batch_size=4096,
        eval_every=epoch,
        save_every=epoch,
        log_every=100,
    )


CIFAR10 = DataConfig(
    name="cifar10",
    label="label",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),  # as kaidic/LDAM-DRW, cifar_train.py
    augment=AugmentConfig(max_shift=4, flip=0.5),  # the same file: RandomCrop(32, padding=4) and a flip
    in_memory=True,
    train_split="train",
    validation_split="test",  # the paper names no other
)


# Mean and standard deviation of its 50,000 training images.
CIFAR100_SUPERCLASSES = replace(
    CIFAR10, name="cifar100", label="coarse_label", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
)


CIFAR100 = replace(CIFAR100_SUPERCLASSES, label="label")


def resnet32_long_tail(data: DataConfig, images: int, peak_learning_rate: float = 0.016) -> TrainConfig:
    """Table 3's ResNet-32 (Appendix C.3): 100 epochs, batch 256, 10 of warm-up, rates 0.016 and 0.008.

    `images` is the number of training images. "Adam with weight decay 0.05, norms excluded" is read as AdamW.
    """
    epoch = math.ceil(images / 256)
    return TrainConfig(
        data=data,
        model=ModelConfig("resnet32"),
        optimizer=OptimizerConfig(AdamW(weight_decay=0.05), Cosine(peak_learning_rate, warmup_steps=10 * epoch)),
        steps=100 * epoch,
        batch_size=256,
        eval_every=10 * epoch,
        save_every=10 * epoch,
    )


def long_tail_images(classes: int, largest: int, ratio: float = 100.0) -> int:
    """How many images a long tail has, the largest of its classes having `largest`."""
    return sum(int(largest * (1 / ratio) ** (label / (classes - 1))) for label in range(classes))


def superclasses(data: DataConfig, images: int, peak_learning_rate: float = 0.016) -> TrainConfig:
    """Table 5's ConvNeXt-Atto on superclasses (Appendix C.2): 200 epochs by the procedure of Appendix A.

    `images` is the number of training images. Unstated there: what `convnext_atto` lists, and to what size CIFAR's
    images are brought; here they stay as `data` has them.
    """
    epoch = math.ceil(images / 4096)
    return replace(
        convnext_atto(200, peak_learning_rate),
        data=data,
        optimizer=OptimizerConfig(AdamW(weight_decay=0.05), Cosine(peak_learning_rate, warmup_steps=5 * epoch)),
        steps=200 * epoch,
        eval_every=10 * epoch,
        save_every=10 * epoch,
    )


# Of Table 4's runs Appendix C.4 gives batch, epochs, warm-up, base rates, projectors and the kinds of augmentation, the
# same for both views; their strengths are those of each method's code, and the rest is "the training protocol in
# Zbontar et al. (2021)".

# google-research/simclr, tf2/data_util.py: jitter of strength 1, a kernel of a tenth of the image.
SIMCLR_VIEW = AugmentConfig(
    crop_size=224,
    flip=0.5,
    color_jitter=ColorJitterConfig(0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    grayscale=0.2,
    blur=BlurConfig(0.5, kernel_size=23),
    interpolation="bicubic",
)
# facebookresearch/vicreg, augmentations.py; its views blur with probability 1.0 and 0.1 and solarize with 0.0 and 0.2,
# here both have the mean of them.
VICREG_VIEW = AugmentConfig(
    crop_size=224,
    flip=0.5,
    color_jitter=ColorJitterConfig(0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
    grayscale=0.2,
    blur=BlurConfig(0.55),
    solarize=0.1,
    interpolation="bicubic",
)


def simclr() -> TrainConfig:
    """ResNet-50, 100 epochs: 67.2 % on ImageNet by the paper's linear probe.

    A temperature of 0.1 is the code's default; images are not normalised there, but lie in 0..1.
    """
    objective = JointEmbedding(losses.NTXent(temperature=0.1), projector=(2048, 256), views_together=True)
    return _of_two_views(0.3, SIMCLR_VIEW, objective, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def vicreg() -> TrainConfig:
    """ResNet-50, 100 epochs: 65.2 % on ImageNet by the paper's linear probe.

    Its embedding is said to be fed to "the infoNCE loss"; read as VICReg's own.
    """
    objective = JointEmbedding(losses.VICReg(), projector=(8192, 8192), views_together=False)
    return _of_two_views(0.2, VICREG_VIEW, objective, IMAGENET.mean, IMAGENET.std)


def _of_two_views(
    base_rate: float, view: AugmentConfig, objective: JointEmbedding, mean: tuple[float, ...], std: tuple[float, ...]
) -> TrainConfig:
    batch, epoch = 4096, 313
    return TrainConfig(
        data=replace(IMAGENET, augment=view, second_view=view, mean=mean, std=std),
        # Norms and losses take the global batch's statistics. The methods' code starts each block as its shortcut.
        model=ModelConfig("resnet50", zero_init_residual=True),
        # barlowtwins/main.py: decay of weights alone, biases and norms at 0.0048 times batch / 256, an end of 0.1 %.
        optimizer=OptimizerConfig(
            LARS(weight_decay=1e-6, bias_rate=0.0048 / base_rate),
            Cosine(base_rate * batch / 256, warmup_steps=5 * epoch, end=1e-3),
        ),
        steps=100 * epoch,
        batch_size=batch,
        joint_embedding=objective,
        monitor_images=50_000,
        eval_every=epoch,
        save_every=epoch,
        log_every=100,
    )


def sweep() -> dict[str, Sites]:
    """No regularizer, then VCReg at the output of every block at every point of the paper's grid."""
    grid = {f"alpha={a} beta={b}": Sites(block=VCReg(a, b)) for a in ALPHAS for b in BETAS}
    return {"baseline": Sites(), **grid}


def _ema(batch_size: int, epochs: int, steps_per_epoch: int, warmup_epochs: int) -> EMAConfig:
    """--model-ema-steps 32 --model-ema-decay 0.99998; in warm-up a plain copy."""
    decay = adjusted_decay(0.99998, batch_size, every_steps=32, epochs=epochs)
    return EMAConfig(decay, steps_per_epoch, every_steps=32, copy_steps=warmup_epochs * steps_per_epoch)
