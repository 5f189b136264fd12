"""Why does VCReg gain by one probe and not by another? Fashion-MNIST's short training with one change at a time.

Paper  does not have it
Ours   not run
Run    python -m train prepare fashion_mnist
       python -m train run strength_reasons --point "as it is"; --point "no augmentation"; --point features; wide
Cost   14 runs a point, about a minute each on one CPU core; three minutes where the network is wider

"as it is" is strength_fashion.py's short training. The other points change one thing: no shifts and flips; VCReg on the
features alone, as in point 1 of Appendix A; twice the width. A fourth probe, L-BFGS on standardized features, shows
what standardizing does: it gives directions of tiny variance the weight of all others.
"""

from dataclasses import replace

from configs import probes, strength_fashion
from train.augment import AugmentConfig
from train.config import Target, TrainConfig
from train.experiments.grid import Grid, Strengths
from vcreg_jax import Sites, VCReg

REG = VCReg(scale="equation_4")


def get_config() -> Grid:
    """Nothing changed."""
    return sweep()["as it is"]


def sweep() -> dict[str, Grid]:
    """Nothing changed, and one thing changed."""
    train = strength_fashion.get_config().train
    return {
        "as it is": _grid("as_it_is", train),
        "no augmentation": _grid("no_augmentation", replace(train, data=replace(train.data, augment=AugmentConfig()))),
        "features": _grid("features", train, Sites(features=REG)),
        "wide": _grid("wide", replace(train, model=replace(train.model, name="convnext_digits_x2"))),
    }


def _grid(name: str, train: TrainConfig, sites: Sites = Sites(block=REG)) -> Grid:  # noqa: B008 - frozen
    short = strength_fashion.get_config()
    standardized = Target(replace(probes.PAPER, protocol="standardized", standardize=True))
    return replace(
        short,
        name=f"strength_reasons_{name}",
        title=f"Fashion-MNIST, 400 steps, {name.replace('_', ' ')}: three kinds, then the ten classes",
        train=train,
        search=train,
        arms={"Eq. 4": Strengths(sites, (0.64, 2.56), (0.16, 2.56))},
        targets=short.targets | {"L-BFGS, standardized": standardized},
    )
