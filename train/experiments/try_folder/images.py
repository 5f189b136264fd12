"""Which data set a folder becomes, and what there is to know of its images before a network is chosen."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from train.augment import EvalTransformConfig
from train.config import DataConfig
from train.data import builders, labels, pipeline
from train.data.catalog import KNOWN
from train.data.division import Division
from train.data.views import VIEWS

DIVISION = Division(validation=0.15, test=0.2, only_missing=True)
_LOOKED_AT = 1000  # training images, of whose sizes
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Facts:
    """What is in a prepared data set, as far as it decides how to train on it."""

    name: str  # of the data set
    directory: str  # where it lies
    label: str  # to train on: the coarsest
    probe_label: str  # to probe: the finest
    splits: tuple[str, str, str]  # train, validation and test, in TFDS's notation
    counts: tuple[int, int, int]
    classes: int  # of `label`
    probe_classes: int
    fewest: int  # training images of the smallest class of `probe_label`
    shorter_side: int  # pixels, the median
    longest_ratio: float  # of longer to shorter side
    channels: Literal[1, 3]


def prepare(folder: Path, name: str | None, directory: Path) -> str:
    """The name of the data set that `folder` is, or becomes: missing splits are made of training images.

    Raises:
      ValueError: where a data set of that name is there already, of which nobody knows whether it is this one.
    """
    lies_there = folder.exists() and folder.resolve().parent == directory.resolve()
    text = folder.name if lies_there else str(folder)
    if (lies_there or not folder.exists()) and (text in KNOWN or text in VIEWS or (directory / text).is_dir()):
        builders.prepared(VIEWS[text].of if text in VIEWS else text, str(directory))
        return text
    if not folder.exists():
        raise ValueError(f"There is no folder {folder}, nor a data set of that name under {directory}.")
    name = name or make_name(folder)
    if name in KNOWN or name in VIEWS or name == "synthetic":
        name = f"{name}_images"
    if (directory / name).exists():
        raise ValueError(
            f"{directory / name} is there already. To use it as it is: python -m train try {name}. If {folder} is "
            "another set of images, or has changed since, give another --name."
        )
    builders.prepare(name, folder, directory, division=DIVISION)
    return name


def make_name(folder: Path) -> str:
    """Small letters, digits and _, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().stem.lower()).strip("_")
    return name if name[:1].isalpha() else f"images_{name}".rstrip("_")


def gather_facts(name: str, directory: Path) -> Facts:
    """What is in the data set `name` under `directory`."""
    builder = builders.prepared(VIEWS[name].of if name in VIEWS else name, str(directory))
    fields = ["superclass", "subclass"] if name in VIEWS and VIEWS[name].superclasses else None
    splits = _splits(list(builder.info.splits))
    config = replace(
        _square(name, directory, 32), train_split=splits[0], validation_split=splits[1], test_split=splits[2]
    )
    by_field = {
        field: pipeline.load(config, "train", field) for field in fields or labels.fields(builder.info.features)
    }
    if not by_field:
        raise ValueError(f"{name} has no class labels.")
    label, probe_label = choose_labels({field: data.labels() for field, data in by_field.items()})
    data = by_field[probe_label]
    config = replace(config, label=label)
    sizes, grey = _looked_at(data)
    shorter = np.min(sizes, axis=1)
    return Facts(
        name=name,
        directory=str(directory),
        label=label,
        probe_label=probe_label,
        splits=splits,
        counts=tuple(len(pipeline.load(config, split, label)) for split in SPLITS),  # pyright: ignore[reportArgumentType]
        classes=by_field[label].num_classes,
        probe_classes=data.num_classes,
        fewest=int(np.bincount(data.labels(), minlength=data.num_classes).min()),
        shorter_side=int(np.median(shorter)),
        longest_ratio=float((np.max(sizes, axis=1) / shorter).max()),
        channels=1 if grey else 3,
    )


def choose_labels(by_field: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """The label with the most classes, and of those that it decides the one with the fewest: trained on, then probed.

    Where there is one label, or none that decides another, it is both.
    """
    distinct = {field: len(np.unique(values)) for field, values in by_field.items()}
    fine = max(distinct, key=lambda field: distinct[field])
    coarser = [
        field
        for field, values in by_field.items()
        if 1 < distinct[field] < distinct[fine]
        and len(np.unique(np.stack([by_field[fine], values]), axis=1).T) == distinct[fine]
    ]
    return min(coarser, key=lambda field: distinct[field], default=fine), fine


def _splits(there: Sequence[str]) -> tuple[str, str, str]:
    """Parts of the training images stand in for what is not there."""
    if "train" not in there:
        raise ValueError(f"There is no split train to train on, but {', '.join(there)}.")
    if {"validation", "test"} <= set(there):
        return "train", "validation", "test"
    if "test" in there:
        return "train[:85%]", "train[85%:]", "test"
    if "validation" in there:  # on which others report their accuracy, as on ImageNet's
        return "train[:85%]", "train[85%:]", "validation"
    return "train[:65%]", "train[65%:80%]", "train[80%:]"


def _square(name: str, directory: Path, side: int) -> DataConfig:
    return DataConfig(
        name, "label", (0.0,), (1.0,), evaluation=EvalTransformConfig(side, side), directory=str(directory)
    )


def _looked_at(data: pipeline.Split) -> tuple[np.ndarray, bool]:
    """Width and height of some images (n, 2), and whether all of these are grey."""
    positions = np.random.default_rng(0).permutation(len(data))[:_LOOKED_AT]
    sizes, modes = [], set()
    for index in data.selection.indices[positions].tolist():
        record: dict[str, Any] = data.selection.records[index]
        with Image.open(io.BytesIO(record["image"])) as image:  # its header alone
            sizes.append(image.size)
            modes.add(image.mode)
    return np.array(sizes), modes <= {"1", "L", "I;16"}
