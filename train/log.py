"""What a run says while it goes: JSON lines in a file, a progress bar on a terminal."""

import errno
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsFile:
    """`metrics.jsonl`: one object a line with its `step`. Lines from `start_step` on are dropped when reopened,
    since those steps are about to be taken again."""

    def __init__(self, path: Path, start_step: int):
        self._path = path
        if jax.process_index() != 0:
            return
        whole, _, _torn = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        kept = [line for line in whole.splitlines() if json.loads(line)["step"] < start_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(path)
        self._size, self._unwritten = path.stat().st_size, b""

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Appends one line; metrics may still be on the device."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._append({"step": step, "split": split, **values})

    def warn(self, step: int, message: str) -> None:
        """Appends a line of the split "warning"."""
        self._append({"step": step, "split": "warning", "message": message})

    def _append(self, line: dict[str, Any]) -> None:
        """On a full disk lines wait until there is room; of several hosts the first writes."""
        if jax.process_index() != 0:
            return
        self._unwritten += json.dumps(line).encode() + b"\n"
        try:
            with self._path.open("r+b") as file:
                file.truncate(self._size)  # what a write left that did not come to its end
                file.seek(self._size)
                file.write(self._unwritten)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return
        self._size, self._unwritten = self._size + len(self._unwritten), b""


class Bar:
    """Progress through the steps of a run with images/s and ETA; without a terminal, a plain line now and then."""

    def __init__(self, title: str, steps: int, start_step: int):
        self._console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
        self._task = self._progress.add_task(title, total=steps, completed=start_step, status="")
        self._title, self._steps = title, steps

    def __enter__(self) -> "Bar":
        if self._console.is_terminal and jax.process_index() == 0:
            self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self, step: int, status: str) -> None:
        """Shows that `step` steps are done."""
        self._progress.update(self._task, completed=step, status=status)

    def line(self, text: str) -> None:
        """Prints a line above the bar, on the first host."""
        if jax.process_index() == 0:
            self._console.print(f"{self._title}  {text}", highlight=False, soft_wrap=True)


class DataWait:
    """Batches, and the share of time for which their consumer waited for them."""

    def __init__(self, batches: Iterator[Any]):
        self._batches = batches
        self._waited, self._since = 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        asked = time.perf_counter()
        batch = next(self._batches)
        self._waited += time.perf_counter() - asked
        return batch

    def share(self) -> float:
        """Of the time since the last call, the share in `next`; with prefetching, what computing does not hide."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share


class Rate:
    """Images a second between two updates; nothing before the second, since the first interval compiles."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._last: tuple[int, float] | None = None
        self._text = ""

    def update(self, step: int) -> None:
        """Notes that the results of `step` are here."""
        now = time.perf_counter()
        if self._last is not None:
            last_step, last_time = self._last
            self._text = f"{(step - last_step) * self._batch_size / (now - last_time):,.0f} images/s"
        self._last = step, now

    def __str__(self) -> str:
        return self._text
