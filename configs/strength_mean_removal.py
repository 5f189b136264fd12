"""Does the paper's mean removal layer matter? Digits, Algorithm 1, with and without it.

Paper  Appendix A puts a mean removal layer before every VCReg; its effect is not reported
Ours   L-BFGS probe +3.87 ± 0.45 without, +3.65 ± 0.47 with the layer (n = 10): no difference
Run    python -m train run strength_mean_removal; python -m train report strength
Cost   20 runs of the search and 40 final ones, about 17 s each on one CPU core

The training is that of strength_digits.py. "Mean removal alone" has the layer at every block and no penalty.
"""

from dataclasses import replace

from configs import strength_digits
from train.experiments.grid import Grid, Strengths
from vcreg_jax import RemoveMean, Sites, VCReg


def get_config() -> Grid:
    """VCReg, VCReg after mean removal, mean removal alone, and neither."""
    alphas, betas = (1.28, 2.56), (0.04, 0.16)
    reg = VCReg(scale="algorithm_1")
    return replace(
        strength_digits.get_config(),
        name="strength_mean_removal",
        title="Digits: VCReg with and without a layer that removes means",
        arms={
            "Algorithm 1": Strengths(Sites(block=reg), alphas, betas),
            "Algorithm 1 after mean removal": Strengths(Sites(block=RemoveMean(reg)), alphas, betas),
            "Mean removal alone": Strengths(Sites(block=RemoveMean(reg)), (0.0,), (0.0,)),
        },
        at_once=10,
    )
