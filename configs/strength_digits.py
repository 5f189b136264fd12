"""How strong must VCReg be? Digits: both conventions, from too weak to too strong, with and without smooth L1.

Paper  grid of alpha 0.16 to 1.28 and beta 0.01 to 0.16 (Appendix A); which point won is not said
Ours   probes +3.9 (L-BFGS), +6.6 (AdamW), +12.4 (nearest neighbours) at the best point: docs/results/strength.md
       twice as long: +3.7 (L-BFGS), +6.4 (AdamW), +10.8 (nearest neighbours)
Run    python -m train run strength_digits; --point long; python -m train report strength
Cost   138 runs of the search and 40 final ones, about 17 s each on one CPU core; "long" 12 and 30 of twice that

The training is that of digits.py. All points are tried with two seeds and chosen by three probes of the ten digits on
validation images; the best point of each arm is trained with ten other seeds and tested. "long" has twice the steps
and four points an arm, tried with one seed: none four rates, each convention those that surround the map's best.
"""

from dataclasses import replace

from configs import digits, probes
from train.config import NearestNeighborsConfig, Target
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg

ALPHAS = (0.16, 0.64, 1.28, 2.56, 10.24)
ALGORITHM_1 = (0.0025, 0.01, 0.04, 0.16, 0.64, 2.56)
EQUATION_4 = (0.16, 2.56, 40.0, 640.0)


def get_config() -> Grid:
    """No regularizer, Eq. 4's gradient, Algorithm 1's, and Algorithm 1's with delta = 1."""
    config = digits.get_config()
    train = replace(config.train, save_every=100)
    return Grid(
        name="strength_digits",
        title="Digits: closed loop or not, then the ten digits",
        train=train,
        search=train,
        arms={
            "Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), ALPHAS, ALGORITHM_1),
            "Algorithm 1, delta 1": Strengths(
                Sites(block=VCReg(scale="algorithm_1", delta=1.0)), ALPHAS[1:4], ALGORITHM_1
            ),
            "Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), ALPHAS, EQUATION_4),
        },
        learning_rates=(4e-3,),
        search_seeds=(100, 101),
        seeds=tuple(range(10)),
        at_once=31,
        vmapped=1,
        steps_per_call=50,
        targets={
            "L-BFGS": config.targets["digit"],
            "AdamW": Target(replace(probes.SUBCLASSES, label="digit")),
            "20-NN": Target(NearestNeighborsConfig("digit")),
        },
    )


def sweep() -> dict[str, Grid]:
    """The map, and its best points' surroundings with twice the steps."""
    whole = get_config()
    steps = 2 * whole.train.steps
    schedule = replace(whole.train.optimizer.schedule, warmup_steps=steps // 10)
    train = replace(
        whole.train, steps=steps, eval_every=steps, optimizer=replace(whole.train.optimizer, schedule=schedule)
    )
    long = replace(
        whole,
        name="strength_digits_long",
        title=f"Digits, {steps} steps: closed loop or not, then the ten digits",
        train=train,
        search=train,
        arms={
            "Algorithm 1": Strengths(Sites(block=VCReg(scale="algorithm_1")), (0.64, 2.56), (0.01, 0.16)),
            "Eq. 4": Strengths(Sites(block=VCReg(scale="equation_4")), (0.64, 2.56), (2.56, 40.0)),
        },
        search_seeds=(100,),
        baseline_learning_rates=(2e-3, 4e-3, 8e-3, 16e-3),
    )
    return {"map": whole, "long": long}
