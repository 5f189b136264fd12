"""The lines of `metrics.jsonl` as TensorBoard's curves."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def check_installed() -> None:
    """Raises ValueError when the writer of TensorBoard's files is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("TensorBoard's files need tensorboardX: pip install 'vcreg-jax[train,tensorboard]'.")


class TensorBoard:
    """Event files in `directory`, made anew from `lines`: after a restart they hold what `metrics.jsonl` holds."""

    def __init__(self, directory: Path, lines: Iterable[dict[str, Any]]):
        from tensorboardX import SummaryWriter

        for old in directory.glob("events.*"):
            old.unlink()
        # TensorBoards that are open forget what they have read of the old files.
        self._writer = SummaryWriter(str(directory), purge_step=0)
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
