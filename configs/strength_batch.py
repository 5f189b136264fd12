"""Does the best strength stay where it is when the batch changes? Digits with batches of 32 and 512; 128 is the map's.

Paper  does not say
Ours   batch 32: Algorithm 1's best beta is 4 times that of 128, Eq. 4's stays; 512: not run (docs/results/strength.md)
Run    python -m train run strength_batch --point "batch 32"; --point "batch 512"
Cost   2 and 20 minutes on one CPU core

Algorithm 1's covariance term counts samples, Eq. 4's does not. If Eq. 4's strength is the one that stays put, its best
beta is the same in every batch, and Algorithm 1's falls as the batch grows; or the other way round. alpha is the
map's best.
"""

from dataclasses import replace

from configs.strength_digits import get_config as of_digits
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg

ALPHA = 2.56


def get_config() -> Grid:
    """The small batch."""
    return sweep()["batch 32"]


def sweep() -> dict[str, Grid]:
    """A quarter of the map's batch, and four times that."""
    return {f"batch {size}": _grid(size) for size in (32, 512)}


def _grid(batch_size: int) -> Grid:
    digits = of_digits()
    train = replace(digits.train, batch_size=batch_size)
    arms = {
        "Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), (ALPHA,), (0.01, 0.04, 0.16, 0.64, 2.56)),
        "Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), (ALPHA,), (2.56, 10.0, 40.0, 160.0, 640.0)),
    }
    return replace(
        digits,
        name=f"strength_batch_{batch_size}",
        title=f"Digits in batches of {batch_size}",
        train=train,
        search=train,
        arms=arms,
        seeds=(0, 1, 2),
    )
