"""Data sets in `.npz` files: arrays as anybody stores them.

Images are called `images`, `x` or `data`, labels `labels` or `y`; of several splits in one file, with the split before
or after: `train_images`, `y_test`. Or there is one file a split, or `is_test` (n,) tells two splits apart. Class names
may stand in `names`; further labels in `<field>_labels`, with `<field>_names`.
"""

from pathlib import Path

import numpy as np

from train.data.division import Division, divide
from train.data.sources import SPLIT_OF_FOLDER, Contents, Images, in_memory
from train.files import arrays

CHANNELS = (1, 3, 4)  # grey, colour, colour and opacity
MOST_CLASSES = 1_000_000
Arrays = dict[str, np.ndarray]
SAME = {"x": "images", "data": "images", "y": "labels", "targets": "labels"}


def read(paths: dict[str, Path], division: Division | None = None) -> Contents:
    """The data set in one file, `{"": path}`, or in one for each split, `{"train": path, ...}`.

    With a `division`, some training images become validation and test images, and records have no order.

    Raises:
      ValueError: for files without images or labels, or that hold pickled objects.
    """
    splits: dict[str, tuple[Images, Arrays]] = {}
    class_names: dict[str, list[str]] = {}
    for split, path in paths.items():
        fields = arrays.read(path)
        class_names |= _names(fields)
        for found, of_split in _by_split(fields).items():
            if not {"images", "labels"} <= of_split.keys():
                raise ValueError(f"{path} needs images and labels, such as x_train and y_train; it has {list(fields)}.")
            try:
                splits |= _tables(split or found, of_split)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            except Exception as error:  # arrays of other shapes and types than their names promise
                raise ValueError(f"{path} is of none of the forms that are read ({error!r}).") from error
    labels_of = {field: [labels[field] for _, labels in splits.values()] for field in next(iter(splits.values()))[1]}
    for field, labels in labels_of.items():
        if labels[0].dtype.kind == "U":  # names in place of numbers
            class_names[field] = np.unique(np.concatenate(labels)).tolist()
        elif field not in class_names:
            most = max((int(values.max()) for values in labels if values.size), default=0)
            if most >= MOST_CLASSES:
                raise ValueError(f"{field}: labels must be below {MOST_CLASSES:,}, got {most:,}.")
            class_names[field] = [str(label) for label in range(most + 1)]
    index = {field: {name: label for label, name in enumerate(class_names[field])} for field in labels_of}
    numbered = {
        split: (images, {field: _numbers(values, index[field]) for field, values in labels.items()})
        for split, (images, labels) in splits.items()
    }
    names = {field: class_names[field] for field in labels_of}
    contents = in_memory(names, numbered)  # which finds what is wrong with them
    return contents if division is None else in_memory(names, _divided(numbered, names, division), shuffled=True)


def _divided(
    splits: dict[str, tuple[Images, Arrays]], names: dict[str, list[str]], division: Division
) -> dict[str, tuple[Images, Arrays]]:
    """With the training images divided by the label that has the most classes."""
    if "train" not in splits:
        return splits
    images, labels = splits["train"]
    finest = max(names, key=lambda field: len(names[field]))
    of_class = [names[finest][label] for label in labels[finest].tolist()]
    others = [split for split in splits if split != "train"]  # which may not be made anew
    found = np.array(divide(["train"] * len(of_class) + others, of_class + others, division)[: len(of_class)])
    made = {}
    for split in dict.fromkeys(found.tolist()):
        rows = np.flatnonzero(found == split)
        made[split] = [images[row] for row in rows.tolist()], {field: values[rows] for field, values in labels.items()}
    return made | {split: splits[split] for split in others}


def _names(fields: Arrays) -> dict[str, list[str]]:
    """Class names by field: `names`, `class_names` and `label_names` are those of `labels`."""
    same = {"names": "label", "class_names": "label", "label_names": "label"}
    return {
        same.get(name, f"{name[:-5]}label"): list(map(str, fields[name].reshape(-1)))
        for name in fields
        if name.endswith("names")
    }


def _numbers(labels: np.ndarray, index: dict[str, int]) -> np.ndarray:
    return np.array([index[name] for name in labels.tolist()], int) if labels.dtype.kind == "U" else labels


def _labels(values: np.ndarray, name: str) -> np.ndarray:
    """Whole numbers or names, (n,)."""
    values = values.reshape(-1)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind not in "buiU":
        some = values[:3].tolist()
        raise ValueError(f"{name} must be whole numbers or names, got {values.dtype} such as {some}.")
    return values


def _by_split(fields: Arrays) -> dict[str, Arrays]:
    """The fields of each split under their bare names; {"train": all} where none names a split."""
    splits: dict[str, Arrays] = {}
    for name, values in fields.items():
        words = name.split("_")
        split = next((SPLIT_OF_FOLDER[word] for word in (words[0], words[-1]) if word in SPLIT_OF_FOLDER), "train")
        bare = "_".join(word for word in words if SPLIT_OF_FOLDER.get(word) != split) if name != "is_test" else name
        splits.setdefault(split if name != "is_test" else "train", {})[SAME.get(bare, bare)] = values
    return {split: arrays for split, arrays in splits.items() if split != "train" or "labels" in arrays} or splits


def _tables(split: str, fields: Arrays) -> dict[str, tuple[Images, Arrays]]:
    images = _images(fields["images"])
    labels = {name.removesuffix("s"): _labels(fields[name], name) for name in fields if name.endswith("labels")}
    if "is_test" not in fields:
        return {split: (images, labels)}
    rows = {"train": np.flatnonzero(fields["is_test"] == 0), "test": np.flatnonzero(fields["is_test"])}
    return {
        name: ([images[int(row)] for row in taken], {field: values[taken] for field, values in labels.items()})
        for name, taken in rows.items()
    }


def _images(given: np.ndarray) -> Images:
    images = given[..., None] if given.ndim == 3 else given
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS:
        images = images.transpose(0, 2, 3, 1)  # as PyTorch keeps them
    if images.ndim != 4 or images.shape[3] not in CHANNELS or images.dtype != np.uint8:
        raise ValueError(
            "images must be uint8 (n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 channels, got "
            f"{given.dtype} {given.shape}."
        )
    return images
