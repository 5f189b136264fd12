"""`python -m train probe`: the linear probe on features in `.npz` or `.npy` files, whoever computed them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import vcreg_jax as vc
from train.config import ProbeConfig
from train.data.division import Division, divide
from train.experiments import doubts
from vcreg_jax.probes import linear

LABELS = ("labels", "label", "y", "targets", "target")
_HELD_OUT = Division(validation=0.2)


@dataclass(frozen=True)
class Labelled:
    """One file: the features of each layer, and the rows' labels."""

    layers: Mapping[str, np.ndarray]  # n d
    labels: np.ndarray  # n


def run(train: Path, validation: Path | None, test: Path, config: ProbeConfig) -> list[dict[str, Any]]:
    """What the probe finds of every layer, a dictionary for each.

    Without validation rows a fifth of every class's training rows chooses the strength, by a fixed seed; the final fit
    is on all of them.

    Args:
      train: an `.npz` with features (n, d), under one name or several, and `labels`; or features in `x.npy` with
        labels in `x_labels.npy`. Or a folder of such: then the files of a name are probed together, one after another.
      validation: likewise.
      test: likewise.
      config: how the probe is fitted; its label is of no consequence.

    Raises:
      ValueError: for files without features or labels, without a layer that another has, and with test labels that no
        training row has.
    """
    if train.is_dir():
        return _of_folders(train, validation, test, config)
    files = {"train": read(train), "test": read(test)}
    if validation is not None:
        files["validation"] = read(validation)
    names = set(files["train"].layers)
    for split, file in files.items():
        if lacking := names ^ set(file.layers):
            raise ValueError(f"Every file needs the same layers: {split} differs in {', '.join(sorted(lacking))}.")
    classes, numbers = number_labels({split: file.labels for split, file in files.items()})
    found = []
    for layer in sorted(names):
        splits = {
            split: linear.Split(np.asarray(file.layers[layer], np.float32), numbers[split])
            for split, file in files.items()
        }
        if validation is None:
            splits = _held_out(splits)
        found.append({"layer": layer, "classes": len(classes), **_probed(splits, len(classes), config)})
    return found


def read(path: Path) -> Labelled:
    """The features and labels in a file; see `run`."""
    if path.suffix == ".npy":
        beside = path.with_name(f"{path.stem}_labels.npy")
        if not beside.is_file():
            raise ValueError(f"The labels of {path} are expected in {beside}.")
        fields = {"features": _array(path), "labels": _array(beside)}
    elif path.suffix == ".npz":
        fields = _arrays(path)
    else:
        raise ValueError(f"{path} must end in .npz or .npy, or be a folder of such files.")
    label = next((name for name in LABELS if name in fields), None)
    layers = {name: values for name, values in fields.items() if values.ndim == 2 and values.dtype.kind == "f"}
    if label is None or not layers:
        has = ", ".join(f"{name} {values.dtype} {values.shape}" for name, values in fields.items())
        raise ValueError(f"{path} needs features (n, d), floating-point, and labels (n,); it has {has}.")
    labels = fields[label].reshape(-1)
    for name, values in layers.items():
        if len(values) != len(labels):
            raise ValueError(f"{path} has {len(values):,} rows of {name} but {len(labels):,} labels.")
    return Labelled(layers, labels)


def number_labels(labels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The training classes, sorted, and the labels of every split as their numbers.

    Raises:
      ValueError: for a label, a number or a name, that no training row has.
    """
    classes = np.unique(labels["train"])
    found = {}
    for split, values in labels.items():
        if values.dtype.kind not in "iubU" or (values.dtype.kind == "U") != (classes.dtype.kind == "U"):
            raise ValueError(f"Labels must be whole numbers or names, the same in all files, got {values.dtype}.")
        if len(unknown := np.setdiff1d(values, classes)):
            some = ", ".join(map(str, unknown[:5].tolist()))
            raise ValueError(f"The labels of {split} have {len(unknown):,} classes without a training row: {some}.")
        found[split] = np.searchsorted(classes, values).astype(np.int32)
    return classes, found


def format_table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each layer; the protocol once."""
    width = max(len("layer"), *(len(str(row["layer"])) for row in found))
    lines = [f"{'layer':{width}}  {'d':>6}  test %  validation %  strength  effective rank"]
    for row in found:
        doubt = "".join(f"  {doubt}" for doubt in doubts.list_doubts(row))
        lines.append(
            f"{row['layer']:{width}}  {row['features']:>6,}  {100 * row['test_accuracy']:6.2f}  "
            f"{100 * row['validation_accuracy']:12.2f}  {row['l2']:8.2g}  {row['effective_rank']:14.1f}{doubt}"
        )
    rows = " + ".join(f"{count:,}" for count in found[0]["rows"])
    return "\n".join([*lines, f"{rows} rows to train, validate and test. {found[0]['protocol']}"])


def _of_folders(train: Path, validation: Path | None, test: Path, config: ProbeConfig) -> list[dict[str, Any]]:
    names = sorted(path.name for path in train.iterdir() if path.suffix in (".npz", ".npy"))
    names = [name for name in names if not name.endswith("_labels.npy")]
    found = []
    for name in names:
        rows = run(train / name, validation and validation / name, test / name, config)
        found += [row | {"layer": f"{name}: {row['layer']}"} for row in rows]
    if not found:
        raise ValueError(f"{train} holds no .npz or .npy file.")
    return found


def _held_out(splits: dict[str, linear.Split]) -> dict[str, linear.Split]:
    features, labels = np.asarray(splits["train"].features), np.asarray(splits["train"].labels)
    taken = np.array(divide(["train"] * len(labels), [str(label) for label in labels], _HELD_OUT)) == "validation"
    parts = {"train": ~taken, "validation": taken}
    return splits | {name: linear.Split(features[rows], labels[rows]) for name, rows in parts.items()}


def _probed(splits: Mapping[str, linear.Split], num_classes: int, config: ProbeConfig) -> dict[str, Any]:
    strengths = linear.l2_grid(config.l2_low, config.l2_high, config.l2_count)
    result = linear.select_and_test(
        splits["train"],
        splits["validation"],
        splits["test"],
        num_classes,
        strengths,
        metric=config.metric,
        standardize=config.standardize,
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
        warm_start=config.warm_start,
        protocol=config.protocol,
    )
    train = jnp.asarray(splits["train"].features)
    return {
        "features": train.shape[1],
        "rows": [len(np.asarray(splits[split].labels)) for split in ("train", "validation", "test")],
        "test_accuracy": result.test_accuracy,
        "validation_accuracy": float(result.validation_accuracy.max()),
        "l2": result.l2,
        "end_of_strengths": doubts.name_end(result.l2, strengths),
        "validation_accuracy_by_l2": result.validation_accuracy.tolist(),
        "effective_rank": float(vc.metrics.effective_rank(train)),
        "converged": result.converged,
        "worst_gradient_norm": result.worst_gradient_norm,
        "protocol": result.protocol,
    }


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # BadZipFile, KeyError, zlib.error, ... by what is damaged
        raise ValueError(f"{path} cannot be read: {error}") from error
