"""Table 5 in small, on data that comes with scikit-learn: trained on "has it a closed loop?", probed on the digit.

Paper  Table 5, ConvNeXt on CIFAR-100's 20 superclasses, probed on its 100 classes: 60.7 -> 72.9 %
Ours   see README (n = 5 seeds)
Run    make run, or: python -m train run configs/digits.py [--train.steps 400] [--seeds 0 1 2]
Cost   about 3 minutes on 2 CPU cores

alpha and beta are a point of the paper's grid (Appendix A); nothing here was tuned.
"""

from train.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, ProbeConfig, TrainConfig
from vcreg_jax import Sites, VCReg


def get_config() -> Experiment:
    """Baseline against VCReg at the output of every block, five seeds each."""
    return Experiment(
        name="digits",
        title="Closed loops to digits: what a network keeps when it is told little",
        train=TrainConfig(
            data=DataConfig(name="digits", label="closed_loop", mean=(0.3057,), std=(0.3761,)),
            model=ModelConfig(name="convnext_digits"),
            optimizer=OptimizerConfig(peak_learning_rate=4e-3, weight_decay=0.05, warmup_steps=50),
            steps=600,
            batch_size=128,
        ),
        arms={"baseline": Sites(), "VCReg": Sites(block=VCReg(alpha=0.64, beta=0.08))},
        probe=ProbeConfig(label="digit"),
        paper="The paper, Table 5: from 20 superclasses of CIFAR-100 to its 100 classes, 60.7 → 72.9 %.",
    )
