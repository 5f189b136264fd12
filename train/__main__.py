"""`python -m train COMMAND ...`: the only reader of the command line. `python -m train` lists the commands.

Wrong input ends with a message and exit status 2; --traceback before the command shows where it came from.
A cross-check that fails, a step that does not fit, a training that comes to numbers that are not finite and a run of
which a part has died or hangs end with exit status 1; what SIGTERM or Ctrl-C has ended with 143 or 130, to be started
again. On several hosts the same command runs on each: docs/pods.md.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NoReturn

from train import command_line
from train.commands import COMMANDS, GROUPS

PROGRAM = "python -m train"
_HELP = ("-h", "--help")


def main(arguments: list[str]) -> None:
    """Runs one command; bad input becomes a message on stderr and exit status 2."""
    show_traceback = arguments[:1] == ["--traceback"]
    arguments = arguments[show_traceback:]
    try:
        _dispatch(arguments, shlex.join([*PROGRAM.split(), *arguments]))
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C. Start it again to go on.", status=130)
    except (ValueError, OSError, FloatingPointError) as error:
        if show_traceback:
            raise
        _fail(_message(error), status=1 if isinstance(error, ChildProcessError | FloatingPointError) else 2)


def _dispatch(arguments: Sequence[str], command: str) -> None:
    if not arguments or arguments[0] in _HELP:
        print(_commands_text())
    elif arguments[0] == "--version":
        import vcreg_jax

        print(vcreg_jax.__version__)
    elif arguments[0] in GROUPS:
        what, load = GROUPS[arguments[0]]
        if arguments[1:2] and arguments[1] not in _HELP:
            return _run(load(), arguments[1:], f"{PROGRAM} {arguments[0]}", command)
        print("\n".join([f"{PROGRAM} {arguments[0]} COMMAND ...", "", what, "", *_lines(load())]))
    else:
        _run(COMMANDS, arguments, PROGRAM, command)


def _run(known: Mapping[str, type[Any]], arguments: Sequence[str], program: str, command: str) -> None:
    name, *options = arguments
    if name not in known:
        names = [*known, *(GROUPS if known is COMMANDS else ())]
        raise ValueError(f"Unknown command {name!r}.{command_line.suggestion(name, names)} Known: {', '.join(names)}.")
    kind, program = known[name], f"{program} {name}"
    if "overrides" not in {field.name for field in fields(kind)}:
        return command_line.parse(kind, options, program).run(command)
    given, overrides = command_line.parse_known(kind, options, program)
    replace(given, overrides=overrides).run(command)


def _commands_text() -> str:
    groups = [f"  {name:<12}{what}" for name, (what, _) in GROUPS.items()]
    return "\n".join(
        [
            f"{PROGRAM} COMMAND ...",
            "",
            *_lines(COMMANDS),
            *groups,
            "",
            f"{PROGRAM} COMMAND --help lists a command's options; --version says which version this is; --traceback",
            "before the command shows where an error came from.",
        ]
    )


def _lines(commands: Mapping[str, type[Any]]) -> list[str]:
    return [f"  {name:<12}{(kind.__doc__ or '').splitlines()[0]}" for name, kind in commands.items()]


def _message(error: Exception) -> str:
    """The message; of its line breaks those before an indented line, which is an entry of a list."""
    return re.sub(r"[ \t]*\n(?!  \S)\s*", " ", str(error).strip())


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
