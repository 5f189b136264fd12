"""All labels of a split, without reading its images again and again."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.data.sources import check_labels


def fields(features: Any) -> list[str]:
    """The names of the features that are class labels."""
    return [name for name, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]


def save(folder: Path, split: str, labels: dict[str, np.ndarray]) -> None:
    """Keeps the labels of a split beside the data set."""
    np.savez(_path(folder, split), **labels)  # pyright: ignore[reportArgumentType]


def of_split(builder: Any, split: str, field: str) -> np.ndarray:
    """The labels int32 (n,) of a whole split in record order; a data set that others prepared is read through once.

    Raises:
      ValueError: for a label out of range.
    """
    folder, count = Path(builder.data_path), builder.info.splits[split].num_examples
    found = _kept(folder, split)
    if field not in found or len(found[field]) != count:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        names = fields(builder.info.features)
        rows = np.array([[record[name] for name in names] for record in map(records.__getitem__, range(count))])
        found = {name: rows[:, column].astype(np.int32) for column, name in enumerate(names)}
        with contextlib.suppress(OSError):  # a folder that may not be written to is read again next time
            save(folder, split, found)
    check_labels(found[field], builder.info.features[field].num_classes, f"{builder.name} {split} {field}")
    return found[field]


def _kept(folder: Path, split: str) -> dict[str, np.ndarray]:
    if not _path(folder, split).exists():
        return {}
    with np.load(_path(folder, split), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _path(folder: Path, split: str) -> Path:
    return folder / f"labels-{split}.npz"
