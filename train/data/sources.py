"""What a data set consists of before it is prepared, and readers of the forms in which many data sets come.

A reader is a function of `Files` that returns `Contents`. Images are encoded files, as they are found; those that come
as arrays are made into PNG. No pickle is ever loaded.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from train.data.archives import LARGEST_FILE, Files
from train.data.division import Division, divide
from train.data.images import png

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".jfif", ".jpe", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPLIT_OF_FOLDER = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation"}
SPLIT_OF_FOLDER |= {"training": "train", "test": "test", "testing": "test"}


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
    unused: Sequence[tuple[str, str]] = ()  # files that lie there and are no example, each with the reason
    shuffled: bool = False  # when written: the order in which they lie there, by class as a rule, says nothing


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


def class_folders(files: Files, division: Division = Division()) -> Contents:  # noqa: B008 - frozen
    """`train/<class>/**/*.jpg`, `val` (or `validation`) and `test` likewise, in any letter case; or `<class>/**/*.jpg`.

    The classes are the training folders. Hidden files and folders are not used. `division` makes validation and test
    images of some training images.

    Raises:
      ValueError: where there are no such folders, a class has no training image or a name that is none, the same file
        lies there twice, in a folder and in an archive, or a split cannot be made.
    """
    unused = [(name, "a link to nothing, or no file") for name in files.unreadable()]
    names, seen = [name for name, _ in files], set[str]()
    has_split_folders = any(isinstance(_in_split_folders(name), tuple) for name in names)
    place_of = _in_split_folders if has_split_folders else _in_folders(names)
    places: dict[str, tuple[str, str]] = {}
    for name in names:
        if isinstance(place := place_of(name), str):
            unused.append((name, place))
            continue
        check_once(name, seen)
        places[name] = place
    found = {class_name for _, class_name in places.values()}
    check_class_names(found, files.root)
    classes = sorted({class_name for split, class_name in places.values() if split == "train"})
    if not classes:
        raise ValueError(f"{files.root} has no images under train/<class>/ or <class>/, such as train/cat/1.jpg.")
    if unknown := sorted(found - set(classes)):
        raise ValueError(f"{files.root} has classes without training images: {', '.join(unknown[:5])}.")
    index = {name: label for label, name in enumerate(classes)}
    splits = divide([split for split, _ in places.values()], [name for _, name in places.values()], division)
    split_of = dict(zip(places, splits, strict=True))

    def split(wanted: str) -> Iterator[Example]:
        for name, read in files:
            if split_of.get(name) == wanted:
                yield Example(name, read(), {"label": index[places[name][1]]})

    named = {wanted: lambda wanted=wanted: split(wanted) for wanted in dict.fromkeys(splits)}
    return Contents({"label": classes}, named, unused=unused, shuffled=True)


def check_class_names(names: Iterable[str], root: Path) -> None:
    """Raises a ValueError for a name that nobody could read, or tell from another."""
    if strange := [name for name in names if name != name.strip() or not name.isprintable()]:
        raise ValueError(f"{root} has a folder whose name cannot be that of a class: {strange[0]!a}. Rename it.")


def check_once(name: str, seen: set[str]) -> None:
    """Adds a file to those seen; raises a ValueError if it is among them."""
    if name in seen:
        raise ValueError(
            f"{name} lies there twice, such as in an archive beside the folder that was unpacked from it: it would be "
            "counted twice. Move one of them away."
        )
    seen.add(name)


def _in_split_folders(name: str) -> tuple[str, str] | str:
    """Split and class of a file in a folder of a split, at any depth in the folder of a class; of others why not."""
    parts = PurePosixPath(name).parts
    place = next((i for i, part in enumerate(parts) if part.lower() in SPLIT_OF_FOLDER), len(parts))
    if reason := _no_image(parts):
        return reason
    if place + 2 >= len(parts):
        return "not in a folder train/<class>, val/<class> or test/<class>"
    return SPLIT_OF_FOLDER[parts[place].lower()], parts[place + 1]


def _in_folders(names: list[str]) -> Callable[[str], tuple[str, str] | str]:
    """The same where no folder is that of a split: a class is the first folder that not all images share."""
    images = [parts for name in names if not _no_image(parts := PurePosixPath(name).parts)]
    shared = 0
    while images and all(len(parts) > shared + 2 and parts[shared] == images[0][shared] for parts in images):
        shared += 1

    def place(name: str) -> tuple[str, str] | str:
        parts = PurePosixPath(name).parts[shared:]
        if reason := _no_image(PurePosixPath(name).parts):
            return reason
        return ("train", parts[0]) if len(parts) > 1 else "not in the folder of a class"

    return place


def _no_image(parts: tuple[str, ...]) -> str:
    if any(part.startswith(".") for part in parts):
        return "hidden"
    return "" if parts[-1].lower().endswith(IMAGE_SUFFIXES) else "not named as an image"


def in_memory(
    class_names: dict[str, list[str]],
    splits: Mapping[str, tuple[Images, Mapping[str, np.ndarray]]],
    shuffled: bool = False,
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
    named = {name: lambda name=name: split(name) for name in splits}
    return Contents(class_names, named, (height, width, channels), shuffled=shuffled)


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
