"""What a data set consists of before it is prepared, and readers of the forms in which many data sets come.

A reader is a function of `Files` that returns `Contents`. Images are encoded files, as they are found; those that come
as arrays are made into PNG. No pickle is ever loaded.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from train.data.archives import LARGEST_FILE, Files
from train.data.images import png

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPLIT_OF_FOLDER = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation"}
SPLIT_OF_FOLDER |= {"test": "test"}


class Example(NamedTuple):
    """One image, not yet decoded."""

    file: str  # where it comes from, for messages and logs
    image: bytes
    labels: dict[str, int]


@dataclass(frozen=True)
class Contents:
    """Splits of examples, each of which can be gone through again."""

    class_names: dict[str, list[str]]  # by label field
    splits: dict[str, Callable[[], Iterator[Example]]]
    shape: tuple[int | None, int | None, int] = (None, None, 3)  # None: images differ


Images = Sequence[np.ndarray | bytes] | np.ndarray  # each uint8 (h, w, c), or an encoded file
Listing = dict[str, dict[str, int]]  # labels by the image's key


def listed(
    files: Files, class_names: dict[str, list[str]], listings: dict[str, Listing], key: Callable[[str], str]
) -> Contents:
    """Images whose labels stand in lists: `key` makes of a path what the lists call the image.

    Raises:
      ValueError: when a split has been gone through, if images of its list were not there.
    """

    def split(listing: Listing) -> Iterator[Example]:
        missing = dict.fromkeys(listing)
        for name, read in files:
            found = key(name)
            if found in missing:
                yield Example(name, read(), listing[found])
                del missing[found]
        if missing:
            first = ", ".join(list(missing)[:3])
            raise ValueError(
                f"{len(missing):,} of {len(listing):,} listed images are not in {files.root}: {first}, ..."
            )

    return Contents(class_names, {name: lambda listing=listing: split(listing) for name, listing in listings.items()})


def class_folders(files: Files) -> Contents:
    """`train/<class>/*.jpg`, and `val` (or `validation`) and `test` likewise: the classes are the training folders.

    Raises:
      ValueError: where there are no such folders, or a class has no training image.
    """
    names: dict[str, set[str]] = {}
    for name, _ in files:
        if (place := _split_and_class(name)) is not None:
            names.setdefault(place[0], set()).add(place[1])
    if "train" not in names:
        raise ValueError(f"{files.root} has no images under train/<class>/, such as train/cat/1.jpg.")
    classes = sorted(names["train"])
    if unknown := sorted(set().union(*names.values()) - set(classes)):
        raise ValueError(f"{files.root} has classes without training images: {', '.join(unknown[:5])}.")
    index = {name: label for label, name in enumerate(classes)}

    def split(wanted: str) -> Iterator[Example]:
        for name, read in files:
            place = _split_and_class(name)
            if place is not None and place[0] == wanted:
                yield Example(name, read(), {"label": index[place[1]]})

    return Contents({"label": classes}, {wanted: lambda wanted=wanted: split(wanted) for wanted in names})


def _split_and_class(name: str) -> tuple[str, str] | None:
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or not name.lower().endswith(IMAGE_SUFFIXES) or parts[-1].startswith("."):
        return None
    return (SPLIT_OF_FOLDER[parts[-3]], parts[-2]) if parts[-3] in SPLIT_OF_FOLDER else None


def in_memory(
    class_names: dict[str, list[str]], splits: Mapping[str, tuple[Images, Mapping[str, np.ndarray]]]
) -> Contents:
    """Images, as uint8 (h, w, c) or encoded, with labels (n,) by field, for each split; their index is their name.

    Raises:
      ValueError: for lengths that differ, pixels that are not uint8, and labels out of range.
    """
    shapes = {image.shape for images, _ in splits.values() for image in images if isinstance(image, np.ndarray)}
    for name, (images, labels) in splits.items():
        for field, values in labels.items():
            if len(values) != len(images):
                raise ValueError(f"{name}: {len(images):,} images but {len(values):,} of {field}.")
            check_labels(values, len(class_names[field]), f"{name} {field}")
        if any(isinstance(image, np.ndarray) and image.dtype != np.uint8 for image in images):
            raise ValueError(f"{name}: pixels must be uint8, got {images[0].dtype}.")  # pyright: ignore

    def split(name: str) -> Iterator[Example]:
        images, labels = splits[name]
        for index, image in enumerate(images):
            encoded = png(image) if isinstance(image, np.ndarray) else image
            yield Example(f"{name}/{index}", encoded, {field: int(values[index]) for field, values in labels.items()})

    height, width, channels = shapes.pop() if len(shapes) == 1 else (None, None, 3)
    channels = min(channels, 3)  # opacity is shown over white
    return Contents(class_names, {name: lambda name=name: split(name) for name in splits}, (height, width, channels))


def check_labels(labels: np.ndarray, num_classes: int, what: str) -> None:
    """Raises a ValueError that names the first label outside 0 .. num_classes - 1."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(
            f"{what}: labels must lie in 0..{num_classes - 1}, got {labels[outside[0]]} at index {outside[0]} "
            f"({len(outside):,} such)."
        )


def idx(encoded: bytes) -> np.ndarray:
    """The array in a gzipped IDX file, as MNIST and its successors come: uint8 of any rank.

    Raises:
      ValueError: for anything else.
    """
    try:
        values = gzip.GzipFile(fileobj=io.BytesIO(encoded)).read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"an IDX file is damaged: {error}") from error
    if values[:3] != b"\0\0\x08" or not 4 + 4 * values[3] <= len(values) <= LARGEST_FILE:
        raise ValueError("not an IDX file of bytes")
    shape = np.frombuffer(values, ">u4", count=values[3], offset=4).astype(np.int64)
    return np.frombuffer(values, np.uint8, offset=4 + 4 * values[3]).reshape(shape)


def binary_records(encoded: Iterable[bytes], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 32, 32, 3) and labels uint8 (n, label_bytes) of CIFAR's binary files, in their order."""
    records = np.frombuffer(b"".join(encoded), np.uint8).reshape(-1, label_bytes + 3072)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, :label_bytes]


def text_lines(encoded: bytes) -> list[str]:
    """The lines that are not empty."""
    return [line.strip() for line in encoded.decode().splitlines() if line.strip()]
