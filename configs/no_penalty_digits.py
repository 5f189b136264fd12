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
from train.experiments.grid import Grid

WIDTHS = (128,), (512,), (128, 128), (512, 512)


def get_config() -> Experiment:
    """The projector."""
    return sweep()["projector"]


def sweep() -> dict[str, Experiment]:
    """Both baselines."""
    return without_penalty(neighbours_digits.get_config(), "no_penalty", "Digits", look_every=50, images=200)


def without_penalty(grid: Grid, name: str, data: str, look_every: int, images: int) -> dict[str, Experiment]:
    """Both baselines, with the training, the seeds, the rates and the probes of `grid`.

    RankMe is that of so many validation images, and is looked at every so many steps.
    """
    stopped = replace(
        grid.train, eval_every=look_every, save_every=look_every, monitor_images=images, tested_by="rankme"
    )
    rates = grid.baseline_learning_rates

    def experiment(kind: str, train: TrainConfig, candidates: tuple[Candidate, ...]) -> Experiment:
        return Experiment(
            name=f"{name}_{kind}",
            title=f"{data} without a penalty: {kind.replace('_', ' ')}",
            train=train,
            arms={kind: candidates},
            targets=grid.targets,
            seeds=grid.seeds,
            tuning_seed=grid.search_seeds[0],
        )

    return {
        "projector": experiment("projector", grid.train, tuple(Candidate(projector=widths) for widths in WIDTHS)),
        "early_stopping": experiment(
            "early_stopping", stopped, tuple(Candidate(peak_learning_rate=rate) for rate in rates)
        ),
    }
