"""Features of all images of a folder, by any network, in one `.npz` file that any framework reads.

Images are read, and features written, batch by batch: a folder of any size takes the memory of a few batches.
"""

import contextlib
import itertools
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from train.augment import eval_transform
from train.data import images as image_files
from train.data.archives import Files
from train.data.images import BadImageError
from train.data.sources import IMAGE_SUFFIXES, class_folders
from train.interop.given_network import Network

_THREADS = 8


class Row(NamedTuple):
    """An image before it is read."""

    file: str
    encoded: bytes
    label: str  # empty where images lie in no folders of classes
    split: str


def write(network: Network, folder: Path, target: Path, batch_size: int = 64) -> str:
    """Writes the features of the images in `folder` to `target`; returns a line that says what was written.

    The file has `features` float32 (n, d) and `files` (n,) and, where images lie in folders of classes, `labels` (n,)
    and `splits` (n,), the names of these folders; `left_out` are files that cannot be decoded.

    Raises:
      ValueError: where there is no image that can be read.
    """
    if target.suffix != ".npz":
        raise ValueError(f"{target} must end in .npz.")
    kept: list[Row] = []
    left_out: list[str] = []
    partial, raw = target.with_name(f"{target.name}.partial"), target.with_name(f"{target.name}.features")
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(partial.unlink, missing_ok=True)
        at_the_end.callback(raw.unlink, missing_ok=True)
        width = 0
        with raw.open("wb") as file:
            for rows, batch in _batches(network, _decoded(network, _rows(folder), left_out), batch_size):
                features = np.asarray(jax.device_get(network.features(batch)), np.float32)[: len(rows)]
                width = features.shape[1]
                file.write(np.ascontiguousarray(features).tobytes())
                kept += rows
        if not kept:
            raise ValueError(f"{folder} has no image that can be read.")
        named = {"files": np.array([row.file for row in kept]), "left_out": np.array(left_out, str)}
        if any(row.label for row in kept):
            named |= {"labels": np.array([row.label for row in kept]), "splits": np.array([row.split for row in kept])}
        _pack(partial, raw, (len(kept), width), named)
        partial.replace(target)
    return f"{target}: {len(kept):,} images, {width:,} features of {network.name}; {len(left_out):,} left out."


def _rows(folder: Path) -> Iterator[Row]:
    """Every image, with its class and split where folders tell them."""
    if not folder.exists():
        raise ValueError(f"There is no folder {folder}.")
    try:
        contents = class_folders(Files(folder))
        flat = any(reason.startswith("not in") for name, reason in contents.unused if _is_image(name))
    except ValueError:
        contents, flat = None, True
    if contents is None or flat:  # some images are in no folder of a class: no labels, rather than not these images
        for name, read in Files(folder):
            if _is_image(name) and not any(part.startswith(".") for part in Path(name).parts):
                yield Row(name, read(), "", "")
        return
    names = contents.class_names["label"]
    for split, examples in contents.splits.items():
        for example in examples():
            yield Row(example.file, example.image, names[example.labels["label"]], split)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _decoded(network: Network, rows: Iterable[Row], left_out: list[str]) -> Iterator[tuple[Row, np.ndarray]]:
    """Images as the network takes them, decoded ahead by threads; the rows keep no bytes."""
    transform = eval_transform(network.evaluation)

    def decode(row: Row) -> np.ndarray | None:
        try:
            return transform(image_files.read(row.encoded, network.channels, "convert"))
        except BadImageError:
            return None

    waiting: deque[tuple[Row, Any]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for row in itertools.chain(rows, [None] * 4 * _THREADS):
            if row is not None:
                waiting.append((row._replace(encoded=b""), threads.submit(decode, row)))
            if waiting and (row is None or len(waiting) > 4 * _THREADS):
                done, image = waiting.popleft()
                if (values := image.result()) is None:
                    left_out.append(done.file)
                else:
                    yield done, values


def _batches(
    network: Network, decoded: Iterator[tuple[Row, np.ndarray]], batch_size: int
) -> Iterator[tuple[list[Row], np.ndarray]]:
    """Rows with their images uint8 (batch_size, h, w, c), the last batch padded with zeros."""
    while some := list(itertools.islice(decoded, batch_size)):
        rows, values = zip(*some, strict=True)
        batch = np.stack(values)
        yield list(rows), np.pad(batch, [(0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)])


def _pack(target: Path, raw: Path, shape: tuple[int, int], named: dict[str, np.ndarray]) -> None:
    """An `.npz` of `named` and of the float32 numbers in `raw`, which are not read into memory at once."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
        with packed.open("features.npy", "w", force_zip64=True) as file, raw.open("rb") as numbers:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            while some := numbers.read(2**24):
                file.write(some)
        for name, values in named.items():
            with packed.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
