"""Files that are written whole or not at all: a full disk leaves what was there before, and an error with a name."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

# What a file system says that has no room: at all, for this user, in this file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, content: str | bytes) -> None:
    """Writes bytes, or a text in UTF-8.

    Raises:
      OSError: naming the file, which is as it was before.
    """
    with replace(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replace(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: what is there at the end takes its place; raises as `write`."""
    target = path.resolve()
    plain = target.is_file() or not path.exists()  # and no /dev/stdout
    partial = target.with_name(f"{target.name}.partial") if plain else path
    try:
        yield partial
        if plain:
            partial.replace(target)
    except OSError as error:
        named = OSError(f"{path} cannot be written: {error.strerror or error}.")
        named.errno = error.errno
        raise named from error
    finally:
        if plain:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
