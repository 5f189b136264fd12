"""Config files: Python under `configs/` with a function `get_config`, and perhaps `sweep`, which names its points."""

import contextlib
import importlib.util
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.command_line import suggestion

FOLDER = Path("configs")


def find(name: str) -> Path:
    """The config file of that path, or of that name under `configs/`.

    Raises:
      ValueError: where there is none, with those that are known.
    """
    for path in (Path(name), FOLDER / f"{name}.py"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    raise ValueError(
        f"There is no config file {name}.{suggestion(Path(name).stem, known)} Known: {', '.join(known) or 'none'}."
    )


def load(path: Path, point: str | None = None) -> Any:
    """The config that the file has, or the named point of its sweep.

    Raises:
      ValueError: for a point that is not there, with those that are known; for a file without `get_config`, or whose
        code fails, with the line.
    """
    if point is None:
        module = _module(path)
        with _name_errors(path):
            return module.get_config()
    known = points(path)
    if point not in known:
        names = list(filter(None, known))
        raise ValueError(
            f"{path} has no point {point!r}.{suggestion(point, names)} Known: {', '.join(names) or 'none'}."
        )
    return known[point]


def points(path: Path) -> dict[str, Any]:
    """The points of the file's sweep by name, or the one config that it has under the empty name; raises as `load`."""
    module = _module(path)
    with _name_errors(path):
        return module.sweep() if hasattr(module, "sweep") else {"": module.get_config()}


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a file ending in .py always has both
    module = importlib.util.module_from_spec(spec)
    with _name_errors(path):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} needs a function get_config() that returns an experiment.")
    return module


@contextlib.contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    """What the file's own code raises, as one line with its place; a ValueError says by itself what is wrong."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = error.lineno if isinstance(error, SyntaxError) else (own or [None])[-1]
        place = f"{path}, line {line}" if line else str(path)
        raise ValueError(f"{place}: {type(error).__name__}: {error}") from error
