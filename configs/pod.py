"""What VCReg costs on a pod: the arms for `preflight`, whole training steps at 128 images a chip.

Paper  Table 1, one A100, forward and backward, batch 128: VCReg +9.9 % (ViT-B/32), +6.6 % (ConvNeXt-T)
Ours   docs/results/pod.md: compiled for v5e, by the compiler's estimate; not run on a TPU
Run    python -m train preflight pod --topology v5e:2x2 --image-shape 224 224 3 --num-classes 1000
           [--train.model.name vit_b_32] [--train.batch-size 512] [--json FILE]
Cost   1 to 5 minutes an arm on 2 CPU cores

The data set only stands in for one: the shape of the images and the number of classes come from the command line.
"""

from train.config import AdamW, Cosine, DataConfig, Experiment, ModelConfig, OptimizerConfig, TrainConfig
from vcreg_jax import Sites, VCReg


def get_config() -> Experiment:
    """VCReg at the output of every block in its three forms, for four chips."""
    return Experiment(
        name="pod",
        title="What VCReg adds to a training step",
        train=TrainConfig(
            data=DataConfig(name="digits", label="digit", mean=(0.3060,), std=(0.3764,)),
            model=ModelConfig(name="resnet50", dtype="bfloat16"),
            optimizer=OptimizerConfig(AdamW(weight_decay=0.05), Cosine(1e-3, warmup_steps=100)),
            steps=1000,
            batch_size=4 * 128,
            label_smoothing=0.1,
        ),
        arms={
            "baseline": Sites(),
            "VCReg": Sites(block=VCReg()),
            "VCReg in groups": Sites(block=VCReg(scope=4)),
            "VCReg sampled": Sites(block=VCReg(sample=4)),
            "VCReg sampled in groups": Sites(block=VCReg(scope=4, sample=4)),
        },
    )
