"""What Orbax and TensorStore print of an error that they also raise, from threads and forgotten futures: hundreds of
tracebacks where a disk is full. `Checkpoints` makes one line of the error; these are dropped, and nothing else is."""

import functools
import logging
import re
import sys
import threading
import traceback
from typing import Any


@functools.cache
def drop() -> None:
    """From now on they are not printed; more calls change nothing."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    of_main, of_threads, of_others = sys.excepthook, threading.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if _is_late(error) else of_main(kind, error, trace)
    threading.excepthook = lambda it: None if _is_orbax(it.exc_value) else of_threads(it)
    sys.unraisablehook = lambda it: None if _is_orbax(it.exc_value) else of_others(it)


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    # Of an error without a traceback the text tells: OCDBT is TensorStore's format.
    told = record.name == "asyncio" and re.search("orbax|OCDBT|tensorstore", record.getMessage()) is not None
    return not (told or _is_orbax(error) or (record.levelno >= logging.ERROR and _of_orbax(record.pathname)))


def _is_late(error: Any) -> bool:
    """Whether TensorStore has told a loop of something after its end, from a thread of its own."""
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _is_orbax(error: Any) -> bool:
    frames = traceback.extract_tb(getattr(error, "__traceback__", None))
    return _is_late(error) or any(_of_orbax(frame.filename) for frame in frames)


def _of_orbax(path: str) -> bool:
    return "/orbax/" in path.replace("\\", "/")
