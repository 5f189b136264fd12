"""What may be wrong with the data of a config that has every split: found before anything is trained or claimed."""

from collections.abc import Sequence

import numpy as np

from train.config import DataConfig
from train.data.pipeline import Split

_NAMED = 5  # classes in a message


def check_training(config: DataConfig, train: Split, validation: Split, batch_size: int) -> None:
    """Raises a ValueError for data that cannot be meant: see `check_classes`; a batch of more images than there are;
    normalization of another number of channels than the images have."""
    if len(train) * config.repeats < batch_size and config.name != "synthetic":
        raise ValueError(
            f"A batch of {batch_size:,} is larger than the training set {train.selection.name}, of {len(train):,} "
            "images: some would be there twice. Set a smaller batch_size."
        )
    channels = train.image_shape[2]
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"data.{name} must have one value for each of the {channels} channels of {config.name}, or one for "
                f"all, got {values}."
            )
    check_classes([train, validation])


def check_classes(splits: Sequence[Split]) -> None:
    """Raises a ValueError for a split that lacks classes of another, unless its config allows it."""
    counts = [np.bincount(split.labels(), minlength=split.num_classes) for split in splits]
    there = np.sum(counts, axis=0) > 0
    for split, of_class in zip(splits, counts, strict=True):
        lacking = [split.class_names[label] for label in np.flatnonzero(there & (of_class == 0))]
        if lacking and not split.config.allow_missing_classes and split.config.name != "synthetic":
            named = ", ".join(lacking[:_NAMED]) + (", ..." if len(lacking) > _NAMED else "")
            raise ValueError(
                f"{split.selection.name}, of {len(split):,} images, has none of {len(lacking):,} classes that other "
                f"splits have: {named}. Records may be sorted by class: prepare with --val and --test, which take a "
                "share of every class, or set data.allow_missing_classes."
            )
