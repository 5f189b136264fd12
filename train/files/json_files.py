"""JSON files that say when they are not what was written: each object, or line, has a hash of its own content.

A file without hashes is of an older version, or somebody else's: it is taken as it is, with a line on stderr.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.files import whole_files

KEY = "sha256"


def text_hash(value: Any) -> str:
    """Of what JSON makes of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write(path: Path, value: Any) -> None:
    """Writes an object or a list of objects, whole or not at all; raises as `whole_files.write`."""
    whole_files.write(path, json.dumps(_seal(value), indent=2) + "\n")


def read(path: Path) -> Any:
    """What `write` wrote.

    Raises:
      ValueError: naming the file, if it cannot be read or is not what was written.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    objects = found if isinstance(found, list) else [found]
    if not all(isinstance(each, dict) for each in objects):
        raise ValueError(f"{path} must hold an object or a list of objects.")
    if not all(KEY in each for each in objects):
        print(f"note: {path} has no hash: it is taken as it is.", file=sys.stderr)
    elif any(each[KEY] != text_hash(_bare(each)) for each in objects):
        raise ValueError(f"{path} is not what was written: its hash differs. Delete it, and what it says is done anew.")
    return [_bare(each) for each in objects] if isinstance(found, list) else _bare(found)


def line(values: dict[str, Any], before: str) -> tuple[bytes, str]:
    """A line of a file, and its hash, which goes over the hash of the line before it, too ("": there is none)."""
    found = text_hash([before, _bare(values)])[:16]
    return json.dumps(values | {KEY: found}).encode() + b"\n", found


def read_lines(text: str, path: Path) -> list[dict[str, Any]]:
    """The objects in the lines of a file, of which each has its hash under "sha256".

    Raises:
      ValueError: naming the file and the line that is not what was written.
    """
    found, before, unhashed = [], "", 0
    for number, each in enumerate(text.splitlines(), start=1):
        try:
            values = json.loads(each)
            known = values[KEY] if KEY in values or before else ""
            bare = _bare(values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, is damaged ({error}). {_MEND}") from error
        if known and known != text_hash([before, bare])[:16]:
            raise ValueError(f"{path}, line {number}, is not what was written, or the line before it. {_MEND}")
        before, unhashed = known, unhashed + (not known)
        found.append(values)
    if unhashed:
        print(f"note: {path} has {unhashed} lines without a hash: they are taken as they are.", file=sys.stderr)
    return found


def append(path: Path, values: dict[str, Any]) -> None:
    """Adds a line to a file, in place of one at its end that was not written whole; raises as `read_lines`."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    before = last_hash(read_lines(whole, path))
    with path.open("r+b" if text else "wb") as file:
        file.truncate(len(whole.encode()))
        file.seek(0, 2)
        file.write(line(values, before)[0])


def last_hash(lines: Sequence[dict[str, Any]]) -> str:
    """What the next line's hash goes over."""
    return next((values.get(KEY, "") for values in reversed(lines)), "")


_MEND = "Move the file away to go on without what it says."


def _seal(value: Any) -> Any:
    if isinstance(value, list):
        return [_seal(each) for each in value]
    # Tuples become lists, keys text: the hash is of what will be read. A part of another file has a hash already.
    plain = _bare(json.loads(json.dumps(value)))
    return plain | {KEY: text_hash(plain)}


def _bare(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != KEY}
