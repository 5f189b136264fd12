"""Data sets that are parts of others: superclasses of ImageNet, long tails of anything."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class View:
    """Which data set, and what of it."""

    of: str
    superclasses: str = ""  # a key of `imagenet_subsets.json`
    long_tail: float | None = None  # the ratio when the config gives none


VIEWS: dict[str, View] = {
    name: View("imagenet", superclasses=name) for name in ("living_9", "mixed_10", "mixed_13", "geirhos_16", "big_12")
} | {"cifar10_lt": View("cifar10", long_tail=100.0), "cifar100_lt": View("cifar100", long_tail=100.0)}


def long_tail_indices(labels: np.ndarray, num_classes: int, ratio: float) -> np.ndarray:
    """The images of a long tail: of class c the first int(m (1/ratio)^(c / (classes - 1))) of a shuffled class.

    m is the number of images of the smallest class. Equal, image by image and in order, to the construction of Cao et
    al. (2019), https://github.com/kaidic/LDAM-DRW, imbalance_cifar.py, when `labels` stand in CIFAR's file order:
    one legacy NumPy generator with seed 0 shuffles the classes one after the other.

    Raises:
      ValueError: for fewer than two classes, a ratio below 1, and a class that would have no image.
    """
    if num_classes < 2 or ratio < 1:
        raise ValueError(f"A long tail needs two classes and a ratio of 1 or more, got {num_classes} and {ratio}.")
    largest = np.bincount(labels, minlength=num_classes).min()
    if int(largest / ratio) < 1:
        raise ValueError(f"A long tail of ratio {ratio:g} leaves a class no image: the smallest has {largest}.")
    shuffler = np.random.RandomState(0)
    picked = []
    for label in range(num_classes):
        indices = np.flatnonzero(labels == label)
        shuffler.shuffle(indices)
        picked.append(indices[: int(largest * (1 / ratio) ** (label / (num_classes - 1)))])
    return np.concatenate(picked)


@dataclass(frozen=True)
class Superclasses:
    """A balanced part of ImageNet: `wnids[i]` is subclass i and belongs to superclass `superclass_of[i]`."""

    names: list[str]
    wnids: list[str]
    superclass_of: list[int]


@functools.cache
def superclasses(name: str) -> Superclasses:
    """One of the five parts of ImageNet by MadryLab/robustness, `robustness/tools/imagenet_helpers.py`.

    A superclass has the first m of the classes below it in WordNet (each class with its last parent alone), m being
    the smallest superclass's number of classes.
    """
    table = json.loads((Path(__file__).parent / "imagenet_subsets.json").read_text())[name]
    wnids = [(wnid, index) for index, group in enumerate(table.values()) for wnid in group["subclasses"]]
    names = [group["name"].split(",")[0] for group in table.values()]
    return Superclasses(names, [wnid for wnid, _ in wnids], [index for _, index in wnids])
