"""Arrays in `.npz` files, whoever wrote them: no pickle, and no few kilobytes that become gigabytes."""

import zipfile
from pathlib import Path

import numpy as np

# Bytes to which a file may expand in any case, and how many times its size beyond that: images do not shrink so far.
EXPANDS = 2**30, 100


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file by name.

    Raises:
      ValueError: naming the file, if it is damaged, holds pickled objects or expands beyond what images do.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            size, there = sum(each.file_size for each in packed.infolist()), path.stat().st_size
        if size > max(EXPANDS[0], EXPANDS[1] * there):
            raise ValueError(f"its {there:,} bytes claim {size:,}, more than {EXPANDS[1]} times as many")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # BadZipFile, EOFError, KeyError, zlib.error, MemoryError, ... by what is damaged
        raise ValueError(f"{path} cannot be read: {error}") from error
