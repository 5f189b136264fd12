"""What a command line says, as a dataclass: its fields are the options, with their types, defaults and comments."""

import contextlib
import difflib
import functools
import io
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import tyro

Given = TypeVar("Given")


def parse(kind: type[Given], arguments: Sequence[str], program: str) -> Given:
    """The `kind` that the arguments describe; `--help` prints what there is and exits.

    Raises:
      ValueError: in one line, for an unknown option, a missing or a wrong value.
    """
    return _read(functools.partial(tyro.cli, kind, **_options(program)), arguments)


def parse_known(kind: type[Given], arguments: Sequence[str], program: str) -> tuple[Given, tuple[str, ...]]:
    """As `parse`, and what `kind` does not know, in order."""
    given, others = _read(functools.partial(tyro.cli, kind, return_unknown_args=True, **_options(program)), arguments)
    return given, tuple(others)


def override(config: Given, arguments: Sequence[str], program: str) -> Given:
    """`config` with `--a.b value` in place of the field `b` of its field `a`; raises as `parse`."""
    weights = tyro.constructors.ConstructorRegistry()
    weights.primitive_rule(_number_or_traced_number)
    # A site without a regularizer holds a function, which cannot be typed, so it is hidden. Nor can an option exchange
    # one type for another, such as AdamW for SGD: that is for the config file.
    options = (tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands)
    with weights:
        return _read(functools.partial(tyro.cli, type(config), default=config, prog=program, config=options), arguments)


def suggestion(name: str, known: Iterable[str]) -> str:
    """A sentence with the most similar known name, or nothing where none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _options(program: str) -> dict[str, Any]:
    return {"prog": program, "config": (tyro.conf.FlagCreatePairsOff,)}


def _read(cli: Callable[..., Any], arguments: Sequence[str]) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return cli(args=list(arguments))
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(framed: str) -> str:
    """Return the text of tyro's framed error message, without the frame and its title."""
    _title, *lines = framed.splitlines()
    return " ".join(" ".join(re.sub(r"[^\x20-\x7e]", " ", line) for line in lines).split())


def _number_or_traced_number(field: Any) -> Any:
    """Of a weight's type, `float | Array`, the command line offers the float."""
    import jax

    if set(typing.get_args(field.type)) != {float, jax.Array}:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda texts: float(texts[0]),
        is_instance=lambda value: isinstance(value, int | float | jax.Array),
        str_from_instance=lambda value: [str(value)],
    )
