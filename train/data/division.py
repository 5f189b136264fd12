"""Validation and test images taken out of the training images: a share of every class, the same at every call."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Division:
    """Which shares of the training images become splits of their own."""

    validation: float = 0.0
    test: float = 0.0
    seed: int = 0  # of which images they are
    only_missing: bool = False  # a split that is there already stays, in place of an error

    def __post_init__(self):
        shares = {"--val": self.validation, "--test": self.test}
        for option, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{option} is a share of the training images in 0..1, got {share}.")
        if sum(shares.values()) >= 1:
            raise ValueError(f"--val {self.validation} and --test {self.test} leave nothing to train on.")


def divide(splits: Sequence[str], classes: Sequence[str], division: Division) -> list[str]:
    """The split of each image, "train", "validation" or "test", once some of the training images have been taken out.

    Every class gives its share, rounded, but at least one image to each split that is made.

    Args:
      splits: of each image.
      classes: likewise.
      division: what to take out.

    Raises:
      ValueError: for a split that is there already, and a class with too few images to give one to each split.
    """
    wanted = {"validation": division.validation, "test": division.test}
    wanted = {split: share for split, share in wanted.items() if share}
    if division.only_missing:
        wanted = {split: share for split, share in wanted.items() if split not in splits}
    if not wanted:
        return list(splits)
    if there := sorted(wanted.keys() & set(splits)):
        raise ValueError(f"There is a {there[0]} split already: leave its share out.")
    train = np.array([split == "train" for split in splits])
    of_class, found = np.array(classes), np.array(splits, dtype="<U10")
    for index, (name, count) in enumerate(sorted(Counter(of_class[train].tolist()).items())):
        taken = {split: max(1, round(share * count)) for split, share in wanted.items()}
        if sum(taken.values()) >= count:
            raise ValueError(
                f"The class {name} has {count} training images, too few to give one to each of "
                f"train, {', '.join(taken)}. Add images, or leave the class out."
            )
        members = np.flatnonzero(train & (of_class == name))
        members = np.random.default_rng([division.seed, index]).permutation(members)
        for split, size in taken.items():
            found[members[:size]], members = split, members[size:]
    return found.tolist()
