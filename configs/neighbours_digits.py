"""VCReg among other regularizers of features: digits, each at its best of four strengths.

Paper  has DeCov and WLD-Reg beside VCReg in Table 2, and none of the others
Ours   docs/results/neighbours.md
Run    python -m train run neighbours_digits; python -m train report neighbours
Cost   36 runs of the search and 36 final ones, about 17 s each on one CPU core

The training and the probes are those of strength_digits.py. Every arm has four points, one tuning seed and four other
seeds: the baseline four learning rates, each regularizer four strengths at 4e-3. A regularizer goes where its own paper
puts it: VCReg and Weak-SIGReg at the output of every block, the others on the input of the classifier. Strengths are a
factor of ten apart, or less, around the one that is published. VCReg's four lie where a map of 68 points had found its
ridge, which the others do not have.
"""

from dataclasses import replace

from configs import strength_digits
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Decorrelation, DeCov, KoLeo, SIGReg, Sites, VCReg, WeakSIGReg, WLDReg


def get_config() -> Grid:
    """The map of the digits with eight regularizers in place of VCReg's three forms."""
    return replace(
        strength_digits.get_config(),
        name="neighbours_digits",
        title="Digits: closed loop or not, then the ten digits; VCReg and its neighbours",
        arms=arms(),
        baseline_learning_rates=(2e-3, 4e-3, 8e-3, 16e-3),
        search_seeds=(100,),
        seeds=(10, 11, 12, 13),
    )


def arms() -> dict[str, Strengths]:
    """Four points each; all but VCReg have one weight, and so four of it."""
    alone = (0.0,)
    decades = (0.01, 0.1, 1.0, 10.0)
    return {
        "VCReg, Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), (0.64, 2.56), (0.01, 0.16)),
        "VCReg, Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), (0.64, 2.56), (2.56, 40.0)),
        "DeCov": Strengths(Sites(features=DeCov(1.0)), (0.001, 0.01, 0.1, 1.0), alone),
        "WLD-Reg": Strengths(Sites(features=WLDReg(1.0, 1.0)), (1e-4, 1e-3, 1e-2, 1e-1), alone),
        "SIGReg": Strengths(Sites(features=SIGReg(1.0)), (0.002, 0.02, 0.2, 2.0), alone),
        "Weak-SIGReg": Strengths(Sites(block=WeakSIGReg(1.0)), decades, alone),
        "KoLeo": Strengths(Sites(features=KoLeo(1.0)), decades, alone),
        "Decorrelation": Strengths(Sites(features=Decorrelation(1.0)), (0.1, 1.0, 10.0, 100.0), alone),
    }
