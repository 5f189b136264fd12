"""How features do while a network trains: probes without iterations on a part of the training images."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.config import TrainConfig
from train.data.pipeline import Split
from train.trainer.evaluation import Predict
from train.trainer.features import extract
from vcreg_jax.metrics import rankme
from vcreg_jax.probes import quick

SHARES = np.geomspace(1e-4, 1e2, 7)  # strengths of the ridge, in units of the mean eigenvalue of x'x


def watch(
    predict: Predict,
    train: Split,
    validation: Split,
    config: TrainConfig,
    mesh: Mesh,
    boundary: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Validation accuracy, fractions, of 20 nearest neighbours and of the best of seven ridge regressions; RankMe.

    The first two learn from `config.monitor_images` training images, always the same ones. To compare checkpoints
    with, not to report: the ridge's strength is chosen on what it is measured on. `boundary` is called at every batch.
    """
    x, y = extract(predict, _part(train, config.monitor_images), config.batch_size, mesh, boundary)
    rows, labels = extract(predict, validation, config.batch_size, mesh, boundary)
    classes, neighbours = train.num_classes, min(20, len(x))
    nearest = quick.knn(x, y, rows, classes, neighbours)
    unit = float(((x - x.mean(axis=0)) ** 2).mean()) * len(x)
    ridges = quick.ridge(x, y, rows, classes, jnp.asarray(SHARES * max(unit, np.finfo(np.float32).tiny)))
    return {
        "knn_accuracy": float((np.asarray(nearest) == labels).mean()),
        "ridge_accuracy": float((np.asarray(ridges) == labels[None]).mean(axis=1).max()),
        "rankme": float(rankme(jnp.asarray(rows))),  # of validation features
    }


def _part(split: Split, images: int) -> Split:
    """So many of the images, drawn once and for all."""
    some = np.sort(np.random.default_rng(0).permutation(len(split))[:images])
    chosen = split.selection
    return replace(split, selection=replace(chosen, indices=chosen.indices[some], targets=chosen.targets[some]))
