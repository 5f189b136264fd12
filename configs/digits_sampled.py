"""`digits` with a third arm, VCReg from a sample of the positions: does the probe feel the difference?

Paper  nothing: the sampled form is ours
Ours   see docs/sampled.md (n = 3 seeds): no difference beyond the noise
Run    python -m train run digits_sampled
Cost   about 4 minutes on 2 CPU cores

The first stage's maps are 4x4: of them `sample=4` keeps every third row and column, one position in four, since one in
sixteen would be 4 rows a feature. The second stage, 2x2 and 64 wide, is exact.
"""

from dataclasses import replace

from configs import digits
from train.config import Experiment
from vcreg_jax import Sites, VCReg


def get_config() -> Experiment:
    """Baseline, exact and sampled, three seeds each."""
    exact = VCReg(alpha=1.28, beta=0.16)
    sampled = replace(exact, sample=4)
    arms = {"baseline": Sites(), "VCReg": Sites(block=exact), "VCReg sampled": Sites(block=sampled)}
    return replace(digits.get_config(), name="digits_sampled", arms=arms, seeds=(0, 1, 2))
