"""Targets: which images of a data set train, validate and test a probe of frozen features, and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

import vcreg_jax as vc
from train.command_line import suggestion
from train.config import (
    DataConfig,
    Experiment,
    GradientProbeConfig,
    NearestNeighborsConfig,
    ProbeConfig,
    Target,
)
from train.data import checks, pipeline
from train.experiments import doubts, gradient_probe
from vcreg_jax.probes import linear, quick
from vcreg_jax.probes.linear import Split

NAMES = ("train", "validation", "test")
FeaturesOf = Callable[[pipeline.Split], tuple[np.ndarray, np.ndarray]]  # features (n, d) and labels (n,), in order
Arrays = dict[str, np.ndarray]
SHOWN = 1500  # test images whose features the report draws; more would only overlap


def on(data: DataConfig, targets: Mapping[str, Target]) -> dict[str, Target]:
    """The targets, those without a data set on `data`, which the networks are trained on."""
    return {name: own if own.data is not None else replace(own, data=data) for name, own in targets.items()}


def choose(config: Experiment, names: Sequence[str]) -> Experiment:
    """The experiment with the named targets alone.

    Raises:
      ValueError: for what is no experiment, and for a name that is none of its targets.
    """
    if not isinstance(config, Experiment):
        raise ValueError(f"Targets can be chosen of an Experiment, not of a {type(config).__name__}.")
    for name in names:
        if name not in config.targets:
            known = ", ".join(config.targets) or "none"
            raise ValueError(f"There is no target {name!r}.{suggestion(name, config.targets)} Known: {known}.")
    return replace(config, targets={name: config.targets[name] for name in names})


def data_of(target: Target) -> DataConfig:
    """The target's data set, which `on` has filled in."""
    assert target.data is not None
    return target.data


def check(name: str, target: Target) -> list[pipeline.Split]:
    """The target's splits, which are there and of the protocol's sizes.

    Raises:
      ValueError: naming the target, for data or a label that are not there, and for other numbers of images.
    """
    loaded = {split: _load(target, split) for split in (NAMES if target.held_out is None else ("train", "test"))}
    counts = {split: len(data) for split, data in loaded.items()}
    if target.held_out is not None:
        out = held_out(loaded["train"].labels(), target.held_out).sum()
        counts |= {"validation": int(out), "train": counts["train"] - int(out)}
    found = tuple(counts[split] for split in NAMES)
    if target.images is not None and found != target.images:
        raise ValueError(
            f"{name}: the protocol has {target.images} images to train, validate and test, the data set "
            f"{data_of(target).name} {found}. Prepare it from its owner's files, or leave `images` out."
        )
    checks.check_classes(list(loaded.values()))
    return list(loaded.values())


def validate(target: Target, features_of: FeaturesOf) -> dict[str, Any]:
    """What the probe finds on validation images; test images are not looked at."""
    train, val = _splits(target, features_of, NAMES[:2])
    if isinstance(target.probe, GradientProbeConfig):
        selection = gradient_probe.select(target.probe, train, val, _num_classes(target))
        return {"validation_accuracy": float(selection.validation_accuracy.max())}
    if isinstance(target.probe, NearestNeighborsConfig):
        return {"validation_accuracy": _nearest_accuracy(target.probe, train, val, _num_classes(target))}
    selection = linear.select(train, val, **_arguments(target, target.probe))
    return {"validation_accuracy": float(selection.validation_accuracy.max()), "l2": selection.l2}


def test(target: Target, features_of: FeaturesOf) -> tuple[dict[str, Any], Arrays]:
    """What the probe that is best on validation images finds on test images, with the protocol's name.

    The arrays are for pictures: the first test images in the plane of the features' two widest directions (`points`,
    with the `shares` of the variance and `labels`), the `singular_values` of the centred training features and, of a
    probe with strengths, those (`l2`) and their `validation_accuracy`.
    """
    train, val, test = splits = _splits(target, features_of, NAMES)
    found: dict[str, Any] = {"converged": True}
    arrays: Arrays = {}
    if isinstance(target.probe, NearestNeighborsConfig):
        validation, accuracy = (
            _nearest_accuracy(target.probe, train, rows, _num_classes(target)) for rows in (val, test)
        )
        found |= {"accuracy": accuracy, "validation_accuracy": validation, "protocol": target.probe.protocol}
    else:
        if isinstance(target.probe, GradientProbeConfig):
            probe = gradient_probe.select_and_test(target.probe, train, val, test, _num_classes(target))
            found |= {"learning_rate": probe.learning_rate}  # trained to its last step, as the protocol has it
        else:
            how = _arguments(target, target.probe)
            probe = linear.select_and_test(train, val, test, protocol=target.probe.protocol, **how)
            found |= {"l2": probe.l2, "converged": probe.converged, "worst_gradient_norm": probe.worst_gradient_norm}
            found |= {"end_of_strengths": doubts.name_end(probe.l2, how["l2"])}
            arrays |= {"l2": np.asarray(how["l2"]), "validation_accuracy": np.asarray(probe.validation_accuracy)}
        found |= {
            "accuracy": probe.test_accuracy,
            "validation_accuracy": float(probe.validation_accuracy.max()),
            "protocol": probe.protocol,
        }
    found |= {
        "effective_rank": float(vc.metrics.effective_rank(jnp.asarray(train.features))),
        "images": [len(np.asarray(split.labels)) for split in splits],
    }
    points, shares = plane(np.asarray(test.features))
    arrays |= {
        "points": points[:SHOWN].astype(np.float32),
        "shares": shares,
        "labels": np.asarray(test.labels)[:SHOWN],
        "singular_values": np.asarray(vc.metrics.singular_values(jnp.asarray(train.features))),
    }
    return found, arrays


def plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The features' first two principal components `(n, 2)`, and the share of the variance in each `(2,)`.

    Signs are fixed (the largest loading is positive), so the same features give the same picture.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    first = axes[:, :-3:-1]
    first = first * np.sign(first[np.argmax(np.abs(first), axis=0), [0, 1]])
    return centred @ first, variances[:-3:-1] / max(float(variances.sum()), 1e-30)


def _nearest_accuracy(config: NearestNeighborsConfig, train: Split, rows: Split, num_classes: int) -> float:
    features, labels = train.features, train.labels
    how = {"neighbours": config.neighbours, "temperature": config.temperature}
    nearest = quick.knn(features, labels, rows.features, num_classes, **how)
    return float((np.asarray(nearest) == np.asarray(rows.labels)).mean())


def held_out(labels: np.ndarray, how_many: float | int) -> np.ndarray:
    """Which training images validate, bool (n,): a share of them, or so many of every class, by a fixed seed.

    Raises:
      ValueError: for a share not between 0 and 1, and for a class that would have nothing left to train on.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    if isinstance(how_many, float):
        if not 0 < how_many < 1:
            raise ValueError(f"held_out must be a share between 0 and 1 or a number of images, got {how_many}.")
        chosen = order[: round(how_many * len(labels))]
    else:
        of_class = [order[labels[order] == label] for label in np.unique(labels)]
        if how_many < 1 or (least := min(map(len, of_class))) <= how_many:
            raise ValueError(f"held_out must leave each class an image, got {how_many} where the fewest are {least}.")
        chosen = np.concatenate([rows[:how_many] for rows in of_class])
    return np.isin(np.arange(len(labels)), chosen)


def _splits(target: Target, features_of: FeaturesOf, names: tuple[str, ...]) -> list[Split]:
    """The named splits; of training images those held out are "validation", if that is how it is made."""
    parts: dict[str, Split] = {}
    if target.held_out is not None:
        features, labels = features_of(_load(target, "train"))
        out = held_out(labels, target.held_out)
        parts = {"train": Split(features[~out], labels[~out]), "validation": Split(features[out], labels[out])}
    return [parts[name] if name in parts else Split(*features_of(_load(target, name))) for name in names]


def _load(target: Target, split: str) -> pipeline.Split:
    return pipeline.load(data_of(target), split, target.probe.label)


def _num_classes(target: Target) -> int:
    return _load(target, "train").num_classes


def _arguments(target: Target, config: ProbeConfig) -> dict[str, Any]:
    return {
        "num_classes": _num_classes(target),
        "l2": linear.l2_grid(config.l2_low, config.l2_high, config.l2_count),
        "metric": config.metric,
        "standardize": config.standardize,
        "tolerance": config.tolerance,
        "max_iterations": config.max_iterations,
        "warm_start": config.warm_start,
    }
