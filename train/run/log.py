"""What a run says while it goes: JSON lines in a file, TensorBoard's curves, a progress bar on a terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from train.config import TrainConfig
from train.files import json_files, whole_files
from train.run.tensorboard import TensorBoard
from train.run.time_left import TimeLeft
from train.run.watchdog import Watchdog


class RunLog:
    """All that a training run says: files in `directory`, and the terminal of the first host. A context manager.

    Metrics may still be on the device; more scalars of a step are more keys.
    """

    def __init__(
        self, directory: Path, title: str, config: TrainConfig, start_step: int, time_left: TimeLeft | None = None
    ):
        self._file = MetricsFile(directory / "metrics.jsonl", start_step, config.tensorboard)
        self._bar = Bar(title, config.steps, start_step)
        self._rate = Rate(config.batch_size, config.steps, time_left or TimeLeft(1, config.steps))

    def __enter__(self) -> "RunLog":
        self._bar.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._bar.__exit__()
        self._file.close()

    def compiling(self, step: int) -> None:
        """Says why nothing moves before the first step."""
        self._bar.line(step, "compiling ...")
        self._bar.update(step, "compiling ...")

    def train(self, step: int, metrics: dict[str, Any]) -> None:
        """What the training step `step` gave."""
        metrics = jax.device_get(metrics)  # waits for the step
        self._rate.update(step)
        self._file.write(step, "train", metrics | self._rate.measured() | device_memory())
        self._bar.update(step, f"loss {metrics['loss']:.4f}  {self._rate}")

    def validation(self, step: int, metrics: dict[str, Any]) -> None:
        """What evaluation gave after `step` steps."""
        self._file.write(step, "validation", metrics)
        self._bar.line(step, f"validation accuracy {metrics['accuracy']:.1%}  {self._rate}")

    def layers(self, step: int, metrics: dict[str, Any]) -> None:
        """What a look into the layers before `step` gave, by names such as "block 3/effective_rank"."""
        self._file.write(step, "layers", metrics)

    def warn(self, step: int, warnings: Sequence[str]) -> None:
        """What a person should know who was not watching."""
        for text in warnings:
            self._bar.line(step, f"warning: {text}")
            self._file.warn(step, text)


class _Lossy:
    """A stream that loses text for which there is no room, or nobody who reads it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes out what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def outliving_its_readers() -> Iterator[None]:
    """A full disk under stdout or stderr, or a pipe that was closed, does not end what goes on in this context."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Lossy, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            try:
                stream.flush()
            except (OSError, ValueError):  # Python would try again at its end, and make an error of it
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class MetricsFile:
    """`metrics.jsonl`: one object a line with its `step`. Lines from `start_step` on are dropped when reopened,
    since those steps are about to be taken again."""

    def __init__(self, path: Path, start_step: int, tensorboard: bool = False):
        self._path, self._board = path, None
        if jax.process_index() != 0:
            return
        whole, _, _torn = path.read_text(errors="replace").rpartition("\n") if path.exists() else ("", "", "")
        lines = json_files.read_lines(whole, path)
        kept = [line for line in lines if line.get("step", 0) < start_step]
        self._hash, written = "", []
        for line in kept:
            text, self._hash = json_files.line(line, self._hash)
            written.append(text)
        whole_files.write(path, b"".join(written))
        self._size, self._unwritten = path.stat().st_size, b""
        if tensorboard:
            self._board = TensorBoard(path.parent / "tensorboard", kept)

    def write(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Appends one line; metrics may still be on the device."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._append({"step": step, "split": split, "time": time.time(), **values})

    def warn(self, step: int, message: str) -> None:
        """Appends a line of the split "warning"."""
        self._append({"step": step, "split": "warning", "time": time.time(), "message": message})

    def close(self) -> None:
        """Ends what TensorBoard's files need."""
        if self._board is not None:
            self._board.close()

    def _append(self, line: dict[str, Any]) -> None:
        """On a full disk lines wait until there is room; of several hosts the first writes."""
        if jax.process_index() != 0:
            return
        if self._board is not None:
            self._board.write(line)
            self._board.flush()
        text, self._hash = json_files.line(line, self._hash)
        self._unwritten += text
        try:
            with self._path.open("r+b") as file:
                file.truncate(self._size)  # what a write left that did not come to its end
                file.seek(self._size)
                file.write(self._unwritten)
        except OSError as error:
            if error.errno not in whole_files.NO_ROOM:
                raise
            return
        self._size, self._unwritten = self._size + len(self._unwritten), b""


class Bar:
    """Progress through the steps of a run, on the first host; without a terminal, a plain line now and then."""

    def __init__(self, title: str, steps: int, start_step: int):
        self._console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task(title, total=steps, completed=start_step, status="")
        self._title, self._steps = title, steps

    def __enter__(self) -> "Bar":
        if self._console.is_terminal and jax.process_index() == 0:
            self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def update(self, step: int, status: str) -> None:
        """Shows that `step` steps are done."""
        self._progress.update(self._task, completed=step, status=status)

    def line(self, step: int, text: str) -> None:
        """Prints a line above the bar."""
        if jax.process_index() == 0:
            place = f"{self._title}  step {step}/{self._steps}"
            self._console.print(f"{place}  {text}", highlight=False, soft_wrap=True)


class DataWait:
    """Batches, and the share of time for which their consumer waited for them; too long is the watchdog's matter."""

    def __init__(self, batches: Iterator[Any], watchdog: Watchdog):
        self._batches, self._watchdog = batches, watchdog
        self._waited, self._since = 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        asked = time.perf_counter()
        self._watchdog.beat("reading a batch")
        batch = next(self._batches)
        self._watchdog.beat("a training step")
        self._waited += time.perf_counter() - asked
        return batch

    def share(self) -> float:
        """Of the time since the last call, the share in `next`; with prefetching, what computing does not hide."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share


class Rate:
    """Images a second between two updates, and how long the whole run still takes.

    Nothing before the second update, since the first interval compiles.
    """

    def __init__(self, batch_size: int, steps: int, time_left: TimeLeft):
        self._batch_size, self._steps, self._time_left = batch_size, steps, time_left
        self._last: tuple[int, float] | None = None
        self._steps_per_second: float | None = None

    def update(self, step: int) -> None:
        """Notes that the results of `step` are here."""
        now = time.perf_counter()
        if self._last is not None:
            last_step, last_time = self._last
            self._steps_per_second = (step - last_step) / (now - last_time)
        self._last = step, now

    def measured(self) -> dict[str, float]:
        """`images_per_second`, once it is known."""
        return (
            {} if self._steps_per_second is None else {"images_per_second": self._steps_per_second * self._batch_size}
        )

    def __str__(self) -> str:
        if self._last is None or self._steps_per_second is None:
            return ""
        left = self._time_left.text(self._steps - self._last[0], self._steps_per_second)
        return f"{self._steps_per_second * self._batch_size:,.0f} images/s  {left}"


def device_memory() -> dict[str, float]:
    """`device_memory_gib`, the most that this host's first device has held; nothing where the device does not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device_memory_gib": stats["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in stats else {}
