"""Two baselines without a penalty beside VCReg's neighbours: digits, an MLP projector and label-free early stopping.

Paper  has neither; a projector keeps what transfers (arXiv 2112.00496, 2206.15369), and networks in the middle of
       their training can be better feature extractors than at its end (arXiv 2203.04668)
Ours   L-BFGS probe: projector +1.9, early stopping +0.2 (n = 4), VCReg +4.2: docs/results/neighbours.md
Run    python -m train run no_penalty_digits --point projector; --point early_stopping
Cost   16 runs, 6 minutes on 2 CPU cores

Training, probes, seeds and number of points are those of neighbours_digits.py. "projector": one or two layers of 128 or
512 with batch norm and ReLU between features and classifier; what is probed are the features before it. "early
stopping": no penalty, at one of four rates; every 50 of the 500 steps RankMe (arXiv 2210.02885) of the features of
the validation images is computed, and the step with the largest is taken. No label takes part in that.
"""

from dataclasses import replace

from configs import neighbours_digits
from train.config import Candidate, Experiment, TrainConfig


def get_config() -> Experiment:
    """The projector."""
    return sweep()["projector"]


def sweep() -> dict[str, Experiment]:
    """Both baselines."""
    train = neighbours_digits.get_config().train
    stopped = replace(train, eval_every=50, save_every=50, monitor_images=200, tested_by="rankme")
    layers = ((128,), (512,), (128, 128), (512, 512))
    rates = (2e-3, 4e-3, 8e-3, 16e-3)
    return {
        "projector": experiment("projector", train, tuple(Candidate(projector=widths) for widths in layers)),
        "early_stopping": experiment(
            "early_stopping", stopped, tuple(Candidate(peak_learning_rate=rate) for rate in rates)
        ),
    }


def experiment(name: str, train: TrainConfig, candidates: tuple[Candidate, ...]) -> Experiment:
    """One arm, with the seeds and probes of the grid."""
    grid = neighbours_digits.get_config()
    return Experiment(
        name=f"no_penalty_{name}",
        title=f"Digits without a penalty: {name.replace('_', ' ')}",
        train=train,
        arms={name: candidates},
        targets=grid.targets,
        seeds=grid.seeds,
        tuning_seed=grid.search_seeds[0],
    )
