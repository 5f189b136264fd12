"""Config files: Python under `configs/` with a function `get_config`, and perhaps `sweep`, which names its points;
and what the command line changes of them."""

import contextlib
import functools
import importlib.util
import io
import re
import typing
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


def overridden(config: Any, arguments: tuple[str, ...]) -> Any:
    """`config` with `--a.b value` put in; with `--help` they are printed, and that is the end.

    Raises:
      ValueError: of one line, for a wrong name or type.
    """
    import tyro

    weights = tyro.constructors.ConstructorRegistry()
    weights.primitive_rule(_number_or_traced_number)
    # Fixed: places where no regularizer is, for which no text could stand. A choice of types is the config file's.
    options = (tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands)
    parse = functools.partial(tyro.cli, prog="python -m train run CONFIG", config=options)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), weights:
            return parse(type(config), default=config, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        _title, *lines = said.getvalue().splitlines()  # in a frame, whose lines are no ASCII
        text = " ".join(re.sub(r"[^\x20-\x7e]", " ", line) for line in lines)
        raise ValueError(" ".join(text.split())) from None


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


def _number_or_traced_number(field: Any) -> Any:
    """Of a weight's type, `float | Array`, the command line offers the float."""
    import jax
    import tyro

    if set(typing.get_args(field.type)) != {float, jax.Array}:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda texts: float(texts[0]),
        is_instance=lambda value: isinstance(value, int | float | jax.Array),
        str_from_instance=lambda value: [str(value)],
    )
