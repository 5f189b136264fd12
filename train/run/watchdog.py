"""A run that hangs ends, and says where it hung."""

import contextlib
import faulthandler
import os
import sys
import threading
import time

_LATE = 5.0  # seconds by which a busy machine may wake a thread too late


class Watchdog:
    """Ends the process with status 1, after the stacks of all threads, when `beat` is not called for `seconds`.

    A context manager. Until `compiled` is called it waits ten times as long. What hangs without an error: a collective
    whose other hosts do not answer, a data reader that was stopped, a file system that is gone.
    """

    def __init__(self, seconds: float):
        self._seconds, self._limit = seconds, 10 * seconds
        self._last, self._what = time.monotonic(), "the start"
        self._done = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()

    def beat(self, what: str) -> None:
        """Notes that things go on, and what comes next."""
        self._last, self._what = time.monotonic(), what

    def compiled(self) -> None:
        """Notes that from now on everything is quick."""
        self._last, self._limit = time.monotonic(), self._seconds

    def _watch(self) -> None:
        pause = min(1.0, self._seconds / 10)  # in short waits, for the limit may fall meanwhile
        woken = time.monotonic()
        while not self._done.wait(pause):
            slept, woken = time.monotonic() - woken, time.monotonic()
            # Longer than asked for, this thread stood still, and so did the others: SIGSTOP, or a machine that slept.
            if slept > pause + _LATE:
                self._last += slept
            if time.monotonic() - self._last < self._limit:
                continue
            # File descriptors and no Python streams, whose locks the hanging thread may hold.
            message = f"error: {self._what} has taken over {self._limit:g} s (hang_seconds); where each thread is:\n"
            with contextlib.suppress(OSError):  # of a full disk, say
                os.write(sys.stderr.fileno(), message.encode())
                faulthandler.dump_traceback(file=sys.stderr.fileno(), all_threads=True)
            os._exit(1)
