"""Whether a prepared data set's files are those that were written, and what tells one split's content from another's.

`hashes.json`, beside the files, has the SHA-256 of every one and, of every split, that of its images and labels in
order. The latter is the same wherever the same images are prepared; the files are not, to the byte.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from train.files import json_files

FILE = "hashes.json"
_THREADS = 8


class Content:
    """The hash of a split's images and labels, record after record."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, image: bytes, labels: Mapping[str, int]) -> None:
        """Takes in the next record."""
        values = [len(image), *(labels[field] for field in sorted(labels))]
        self._digest.update(np.array(values, np.int64).tobytes() + image)

    def __str__(self) -> str:
        return self._digest.hexdigest()


def write(folder: Path, splits: Mapping[str, str]) -> None:
    """Writes the hashes of all files in `folder`, with those of the splits' contents; whole or not at all."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != FILE)
    json_files.write(folder / FILE, {"files": _of_files(folder, names), "splits": dict(splits)})


def check(folder: Path, split: str | None = None) -> str:
    """The hash of the content of `split`, once its files are found to be what was written; None: those of no split.

    A file is read once by a process, unless it changes.

    Raises:
      ValueError: naming the files that are not.
    """
    mend = f"Delete {folder} and prepare the data set again."
    try:
        known = json_files.read(folder / FILE)
        files, splits = dict(known["files"]), dict(known["splits"])
        wanted = [name for name in files if _split_of(name, splits) == split]
        missing = [name for name in wanted if not (folder / name).is_file()]
        unknown = [path.name for path in folder.glob("labels-*.npz") if path.name not in files]
        there = _of_files(folder, [name for name in wanted if name not in missing])
        content = splits[split] if split is not None else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / FILE} cannot be used ({type(error).__name__}: {error}) {mend}") from None
    if damaged := [name for name in wanted if there.get(name) != files[name]] + unknown:
        raise ValueError(f"{folder} holds other bytes than were written, in {', '.join(damaged)}. {mend}")
    return content


def _split_of(name: str, splits: Iterable[str]) -> str | None:
    """The split to which a file belongs: its records or labels."""
    found = [split for split in splits if f"-{split}.array_record-" in name or name == f"labels-{split}.npz"]
    return max(found, key=len) if found else None


def _of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    paths = {name: folder / name for name in names}
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(paths, threads.map(_of_file, paths.values()), strict=True))


def _of_file(path: Path) -> str:
    stat: Any = path.stat()
    return _of_unchanged_file(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _of_unchanged_file(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
