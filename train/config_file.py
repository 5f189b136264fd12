"""Config files: Python under `configs/` with a function `get_config`, and perhaps `sweep`, which names its points."""

import importlib.util
from pathlib import Path
from typing import Any


def load(path: Path, point: str | None = None) -> Any:
    """The config that the file has, or the named point of its sweep.

    Raises:
      ValueError: for a file or a point that is not there, with those that are known; for a file without `get_config`.
    """
    if point is None:
        return _module(path).get_config()
    known = points(path)
    if point not in known:
        raise ValueError(f"{path} has no point {point!r}. Known: {', '.join(filter(None, known)) or 'none'}.")
    return known[point]


def points(path: Path) -> dict[str, Any]:
    """The points of the file's sweep by name, or the one config that it has under the empty name; raises as `load`."""
    module = _module(path)
    return module.sweep() if hasattr(module, "sweep") else {"": module.get_config()}


def _module(path: Path) -> Any:
    if not path.is_file():
        known = ", ".join(sorted(str(file) for file in Path("configs").glob("[!_]*.py")))
        raise ValueError(f"There is no config file {path}. Known: {known}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a file ending in .py always has both
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} needs a function get_config() that returns an experiment.")
    return module
