"""Writing a data set as TFDS `array_record`, record after record: a set of any size takes a few images' memory."""

import contextlib
import json
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from rich.progress import track
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from train.data import hashes, images, labels
from train.data.images import BadImageError, Policy
from train.data.sources import Contents, Example
from train.files import whole_files

VERSION = "1.0.0"
BAD_IMAGES = "bad_images.json"  # beside a prepared data set: what was left out or is converted when read, and why
_SHARD = 2**28  # bytes of a file of records
_ONE_BY_ONE = "group_size:1"  # records are read in any order
_THREADS, _AHEAD = 8, 256


class Bad(NamedTuple):
    """An image that is not plain."""

    split: str
    file: str
    flaw: str
    kept: bool


def write(name: str, contents: Contents, homepage: str, directory: Path, policy: Policy) -> Path:
    """The folder to which `contents` have been written as the data set `name`, whole or not at all.

    Images stay the encoded files that they are. Where `contents` have no order of their own, records are shuffled, the
    same way every time, so that a part such as "train[90%:]" has something of every class.

    Raises:
      ValueError: for a label out of range, a split without an image and, under the policy "raise", a bad image.
      OSError: naming the folder, of which nothing is left.
    """
    folder = directory / name / VERSION
    partial = folder.with_name(f"{VERSION}.incomplete{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_parts(partial, name, contents, homepage, policy)
        return partial.rename(folder)
    except (OSError, RuntimeError) as error:  # the latter from array_record
        full = re.search("No space left on device|Disk quota exceeded|File too large", str(error))
        if isinstance(error, RuntimeError) and not full:
            raise
        raise OSError(f"{folder} cannot be written: {full[0] if full else error}. Nothing of it is left.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parts(folder: Path, name: str, contents: Contents, homepage: str, policy: Policy) -> None:
    bad = [Bad("", file, reason, False) for file, reason in contents.unused]
    info = _info(name, contents, homepage, folder)
    kept = {split: _write_split(info, contents, split, policy, bad) for split in contents.splits}
    info.set_splits(SplitDict([split_info for split_info, _, _ in kept.values()]))
    info.write_to_directory(folder)
    whole_files.write(folder / BAD_IMAGES, json.dumps([each._asdict() for each in bad], indent=1))
    for split, (_, columns, _) in kept.items():
        labels.save(folder, split, {field: np.array(values, np.int32) for field, values in columns.items()})
    hashes.write(folder, {split: str(content) for split, (_, _, content) in kept.items()})


def _info(name: str, contents: Contents, homepage: str, folder: Path) -> Any:
    features = {"image": tfds.features.Image(shape=contents.shape), "file": tfds.features.Text()}
    features |= {field: tfds.features.ClassLabel(names=names) for field, names in contents.class_names.items()}
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(name, tfds.core.Version(VERSION), str(folder), __name__),
        features=tfds.features.FeaturesDict(features),
        homepage=homepage,
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    return info


def _write_split(
    info: Any, contents: Contents, split: str, policy: Policy, bad: list[Bad]
) -> tuple[SplitInfo, dict[str, list[int]], hashes.Content]:
    """How the records of a split lie there, their labels, and the hash of their content."""
    columns: dict[str, list[int]] = {field: [] for field in contents.class_names}
    content, folder = hashes.Content(), Path(info.data_dir)
    serializer = ExampleSerializer(info.features.get_serialized_info())
    shards = _Shards(folder)
    with contextlib.closing(shards):
        examples = _kept(contents, split, policy, bad)
        if contents.shuffled:
            examples = _shuffled(examples, folder / "waiting", np.random.default_rng([0, *split.encode()]))
        for example in examples:
            for field, values in columns.items():
                values.append(example.labels[field])
            content.add(example.image, {field: example.labels[field] for field in columns})
            record = {"image": example.image, "file": example.file, **example.labels}
            shards.add(serializer.serialize_example(info.features.encode_example(record)))
    if not shards.lengths:
        raise ValueError(f"{info.name}: there is no image for the split {split}.")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=info.name, data_dir=epath.Path(folder), split=split, filetype_suffix="array_record"
    )
    for path, final in zip(shards.paths, template.sharded_filepaths(len(shards.paths)), strict=True):
        path.rename(final)
    return SplitInfo(split, shards.lengths, shards.total, template), columns, content


class _Shards:
    """Files of records under names of their own: how many there will be is known at the end."""

    def __init__(self, folder: Path):
        self._folder, self._writer, self._room = folder, None, 0
        self.paths: list[Path] = []
        self.lengths: list[int] = []
        self.total = 0  # bytes of records

    def add(self, record: bytes) -> None:
        """Writes a record, in a new file where the last one is full."""
        if self._writer is None or self._room <= 0:
            self.close()
            self.paths.append(self._folder / f"shard{len(self.paths)}")
            self._writer, self._room = ArrayRecordWriter(str(self.paths[-1]), _ONE_BY_ONE), _SHARD
            self.lengths.append(0)
        self._writer.write(record)
        self._room -= len(record)
        self.total += len(record)
        self.lengths[-1] += 1

    def close(self) -> None:
        """Ends the file that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _shuffled(examples: Iterator[Example], waiting: Path, rng: np.random.Generator) -> Iterator[Example]:
    """All of `examples` in random order; images wait on disk, since an archive has an order of its own."""
    rest, writer = [], ArrayRecordWriter(str(waiting), _ONE_BY_ONE)
    try:
        for example in examples:
            writer.write(example.image)
            rest.append(example._replace(image=b""))
    finally:
        writer.close()
    if rest:
        with ArrayRecordDataSource(str(waiting)) as there:
            for index in rng.permutation(len(rest)).tolist():
                yield rest[index]._replace(image=there[index])
    waiting.unlink()


def _kept(contents: Contents, split: str, policy: Policy, bad: list[Bad]) -> Iterator[Example]:
    """The examples that are written, in the source's order; adds to `bad` what is not plain."""
    found = _looked_at(contents.splits[split](), contents.shape[2])
    for example, why, usable in track(found, split, disable=not sys.stderr.isatty(), transient=True):
        for field, label in example.labels.items():
            classes = len(contents.class_names[field])
            if not 0 <= label < classes:
                raise ValueError(f"{example.file}: {field} must lie in 0..{classes - 1}, got {label}.")
        if why and policy == "raise":
            raise ValueError(f"{example.file}: {why}. `--bad-images convert` mends it, `skip` leaves it out.")
        keep = not why or (usable and policy == "convert")
        if why:
            bad.append(Bad(split, example.file, why, keep))
        if keep:
            yield example


def _looked_at(examples: Iterable[Example], channels: int) -> Iterator[tuple[Example, str, bool]]:
    """Each example with its image's flaw and whether it can be used all the same; threads decode ahead."""
    waiting: deque[tuple[Example, Future[tuple[str, bool]]]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for example in examples:
            waiting.append((example, threads.submit(flaw, example.image, channels)))
            if len(waiting) > _AHEAD:
                first, looked_at = waiting.popleft()
                yield first, *looked_at.result()
        for first, looked_at in waiting:
            yield first, *looked_at.result()


def flaw(encoded: bytes, channels: int) -> tuple[str, bool]:
    """What is not plain about an image, and whether it can be used all the same."""
    try:
        images.read(encoded, channels, "raise")
    except BadImageError as error:
        with contextlib.suppress(BadImageError):
            images.read(encoded, channels, "convert")
            return str(error), True
        return str(error), False
    return "", True
