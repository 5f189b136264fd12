"""Two baselines without a penalty beside VCReg's neighbours: CIFAR-10 and CIFAR-100.

Paper  has neither; see no_penalty_digits.py
Ours   not run
Run    python -m train prepare cifar10 --from FOLDER; python -m train prepare cifar100 --from FOLDER
       python -m train run no_penalty_cifar --point "cifar10 projector"; --point "cifar10 early_stopping"; and cifar100
Cost   7 runs a point; on one CPU core about 3 minutes each for CIFAR-10, 2 for CIFAR-100

Training, seeds and probes are those of neighbours_cifar.py. Here all four points of an arm are trained at full length,
there the search is shorter. RankMe of 2,000 validation images is looked at ten times.
"""

from dataclasses import replace

from configs import neighbours_cifar, strength_cifar10
from configs.no_penalty_digits import without_penalty
from train.config import Experiment


def get_config() -> Experiment:
    """The projector on CIFAR-10."""
    return sweep()["cifar10 projector"]


def sweep() -> dict[str, Experiment]:
    """Both baselines on both data sets."""
    rates = strength_cifar10.get_config().baseline_learning_rates
    of_data = {
        "cifar10": without_penalty(
            replace(neighbours_cifar.cifar10(), baseline_learning_rates=rates),
            "no_penalty_cifar10",
            "CIFAR-10",
            look_every=150,
            images=2000,
        ),
        "cifar100": without_penalty(
            neighbours_cifar.cifar100(), "no_penalty_cifar100", "CIFAR-100", look_every=90, images=2000
        ),
    }
    return {f"{data} {kind}": config for data, own in of_data.items() for kind, config in own.items()}
