"""All labels of a split, without reading its images again and again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.data.sources import check_labels
from train.files import arrays, whole_files


def fields(features: Any) -> list[str]:
    """The names of the features that are class labels."""
    return [name for name, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]


def save(folder: Path, split: str, labels: dict[str, np.ndarray]) -> None:
    """Keeps the labels of a split beside the data set, whole or not at all."""
    with whole_files.replace(_path(folder, split)) as partial, partial.open("wb") as file:
        np.savez(file, **labels)  # pyright: ignore[reportArgumentType]


def records(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The records of a whole split in order, their images not decoded.

    Raises:
      ValueError: for one that cannot be read.
    """
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    for index in range(builder.info.splits[split].num_examples):
        try:
            yield source[index]
        except Exception as error:  # TFDS and array_record raise many types
            raise ValueError(f"{builder.data_path}, {split}: record {index} cannot be read ({error}).") from error


def of_split(builder: Any, split: str, field: str) -> np.ndarray:
    """The labels int32 (n,) of a whole split in record order.

    Raises:
      ValueError: for a label out of range, and where they are not there.
    """
    path, count = _path(Path(builder.data_path), split), builder.info.splits[split].num_examples
    found = arrays.read(path).get(field)
    if found is None:
        raise ValueError(f"{path} has no labels {field}: prepare the data set again.")
    if found.shape != (count,):
        raise ValueError(f"{path} has labels of shape {found.shape} for {count:,} images: prepare the data set again.")
    check_labels(found, builder.info.features[field].num_classes, f"{builder.name} {split} {field}")
    return found


def _path(folder: Path, split: str) -> Path:
    return folder / f"labels-{split}.npz"
