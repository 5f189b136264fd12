"""The lines of `metrics.jsonl` as TensorBoard's curves."""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.files import whole_files

_PREFIX = "vcreg"  # of paths, by which tensorboardX finds who opens them


def check_installed() -> None:
    """Raises ValueError when the writer of TensorBoard's files is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("TensorBoard's files need tensorboardX: pip install -e '.[train,tensorboard]'.")


class TensorBoard:
    """Event files in `directory`, made anew from `lines`: after a restart they hold what `metrics.jsonl` holds."""

    def __init__(self, directory: Path, lines: Iterable[dict[str, Any]]):
        from tensorboardX import SummaryWriter, record_writer

        record_writer.register_writer_factory(_PREFIX, _EventFiles())
        for old in directory.glob("events.*"):
            old.unlink()
        # TensorBoards that are open forget what they have read of the old files.
        self._writer = SummaryWriter(f"{_PREFIX}:{directory}", purge_step=0)
        for line in lines:
            self.write(line)
        self._writer.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Every number of one line, at its step and time, under `name/split`."""
        about = ("step", "split", "time")
        for name, value in line.items():
            if name not in about and not isinstance(value, str):
                self._writer.add_scalar(f"{name}/{line['split']}", value, line["step"], line["time"])

    def flush(self) -> None:
        """What was written is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the writer's thread."""
        self._writer.close()


class _EventFiles:
    """What tensorboardX asks of a place where event files are."""

    def directory_check(self, path: str) -> None:
        """Makes the folder."""
        Path(path.removeprefix(f"{_PREFIX}:")).mkdir(parents=True, exist_ok=True)

    def open(self, path: str) -> "_EventFile":
        """A new file."""
        return _EventFile(Path(path.removeprefix(f"{_PREFIX}:")))


class _EventFile:
    """An event file that ends with a whole record where the disk is full; the next start of the run makes it anew."""

    def __init__(self, path: Path):
        self._file, self._path, self._unwritten, self._is_full = path.open("wb", buffering=0), path, b"", False

    def write(self, data: bytes) -> None:
        """Takes a part of a record."""
        self._unwritten += b"" if self._is_full else data

    def flush(self) -> None:
        """Writes the records that were taken."""
        size = self._file.tell()
        try:
            left = self._unwritten
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if error.errno not in whole_files.NO_ROOM:
                raise
            self._is_full = True
            self._file.truncate(size)
            print(f"warning: {self._path} ends here: {error.strerror}. A restart makes it anew.", file=sys.stderr)
        self._unwritten = b""

    def close(self) -> None:
        """Ends the file."""
        self._file.close()
