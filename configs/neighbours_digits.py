"""The other regularizers of features beside VCReg: digits, each at its best of four strengths.

Paper  has DeCov and WLD-Reg beside VCReg in Table 2, and none of the others
Ours   L-BFGS probe: VCReg +4.2, Weak-SIGReg +3.4, Decorrelation +2.3 (at every block +4.1), SIGReg +1.1, the others
       nothing (n = 4): docs/results/neighbours.md
Run    python -m train run neighbours_digits; python -m train report neighbours
Cost   40 runs of the search and 40 final ones, about 17 s each on one CPU core

Training, probes and seeds are those of strength_digits.py, so its two VCReg arms stand in the same table: of its 68
points the four with alpha 0.64 or 2.56 and beta 0.01 or 0.16 (Algorithm 1), 2.56 or 40 (Eq. 4), tried with seed 100
alone, would have chosen the same point. Here every arm has four points, one tuning seed and four other seeds: the
baseline four learning rates, each regularizer four strengths at 4e-3, a factor of ten apart, with the published one
among them where there is one. (Two were shifted, since the best was at an end: WLD-Reg had been tried from 1e-4 to
1e-1, Decorrelation from 0.1 to 100.) A regularizer goes where its own paper puts it: Weak-SIGReg to the output of every
block (its code takes the mean over positions first; here every position is a sample), the others to the input of the
classifier. The last three arms are elsewhere than their papers have them: does the place matter, or the penalty?
"""

from dataclasses import replace

from configs import strength_digits
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Decorrelation, DeCov, KoLeo, SIGReg, Sites, VCReg, WeakSIGReg, WLDReg


def get_config() -> Grid:
    """The training of the map of strengths, with other regularizers in place of VCReg, and three elsewhere."""
    return replace(
        strength_digits.get_config(),
        name="neighbours_digits",
        title="Digits: closed loop or not, then the ten digits; VCReg's neighbours",
        arms=at_their_own_places() | elsewhere(),
        baseline_learning_rates=(2e-3, 4e-3, 8e-3, 16e-3),
        search_seeds=(100,),
        seeds=(0, 1, 2, 3),
    )


def four(sites: Sites, *weights: float) -> Strengths:
    """An arm of four points: weights, since none but VCReg has a beta."""
    return Strengths(sites, weights, (0.0,))


def at_their_own_places() -> dict[str, Strengths]:
    """Each regularizer where its own paper puts it."""
    return {
        "DeCov": four(Sites(features=DeCov(1.0)), 0.001, 0.01, 0.1, 1.0),
        "WLD-Reg": four(Sites(features=WLDReg(1.0, 1.0)), 1e-6, 1e-5, 1e-4, 1e-3),
        "SIGReg": four(Sites(features=SIGReg(1.0)), 0.002, 0.02, 0.2, 2.0),
        "Weak-SIGReg": four(Sites(block=WeakSIGReg(1.0)), 0.01, 0.1, 1.0, 10.0),
        "KoLeo": four(Sites(features=KoLeo(1.0)), 0.01, 0.1, 1.0, 10.0),
        "Decorrelation": four(Sites(features=Decorrelation(1.0)), 1.0, 10.0, 100.0, 1000.0),
    }


def elsewhere() -> dict[str, Strengths]:
    """Three of them, VCReg included, at a place that is not their paper's."""
    return {
        "VCReg, Eq. 4, features": Strengths(Sites(features=VCReg(scale="equation_4")), (0.64, 2.56), (2.56, 40.0)),
        "DeCov, every block": four(Sites(block=DeCov(1.0)), 0.001, 0.01, 0.1, 1.0),
        "Decorrelation, every block": four(Sites(block=Decorrelation(1.0)), 0.1, 1.0, 10.0, 100.0),
    }
