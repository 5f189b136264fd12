"""The files that a user has, in folders or in tar archives, read without ever unpacking one."""

import contextlib
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

LARGEST_FILE = 2**28  # bytes of one image or list of labels; more is no such thing
ARCHIVES = (".tar", ".tar.gz", ".tgz")
LONGEST_NAME = 2**20  # bytes of a header that says a path or what else is known of a file
_READS_BEYOND = 16
DEEPEST = 3  # archives in archives
PACKED = 2**30, 100  # bytes to which what is packed may expand in any case, and how many times its size beyond that
_GZIP = b"\x1f\x8b"

Read = Callable[[], bytes]  # the contents; to be called before the next file is asked for


@dataclass(frozen=True)
class Files:
    """All files under a folder, those in its archives included."""

    root: Path

    def __iter__(self) -> Iterator[tuple[str, Read]]:
        """Paths with forward slashes, and readers: plain files by name, then archives by size, as they were written."""
        paths = [path for path in self._paths() if path.is_file()]
        archives = [path for path in paths if path.name.endswith(ARCHIVES)]
        base = self.root if self.root.is_dir() else self.root.parent
        for path in paths:
            if not path.name.endswith(ARCHIVES):
                yield _text(path.relative_to(base)), path.read_bytes
        for path in sorted(archives, key=lambda path: path.stat().st_size):  # lists of labels lie in the small ones
            yield from members(path)

    def _paths(self) -> list[Path]:
        """All that is no folder, by name; links to folders are gone into."""
        if not self.root.is_dir():
            return [self.root]
        found = []
        for folder, inside, names in os.walk(self.root, followlinks=True):
            found += [Path(folder, name) for name in names]
            # A link to a folder that this one lies in would be gone into again and again.
            above = {os.path.realpath(parent) for parent in (Path(folder), *Path(folder).parents)}
            inside[:] = [name for name in inside if os.path.realpath(Path(folder, name)) not in above]
        return sorted(found)

    def unreadable(self) -> list[str]:
        """Links to nothing, and whatever else is neither file nor folder."""
        return [_text(path.relative_to(self.root)) for path in self._paths() if not path.is_file()]

    def find(self, *suffixes: str) -> dict[str, bytes]:
        """The contents of the files whose paths end so, by suffix; stops at the last of them.

        Raises:
          FileNotFoundError: naming those that are not there.
        """
        found: dict[str, bytes] = {}
        for name, read in self:
            for suffix in suffixes:
                if suffix not in found and f"/{name}".endswith(f"/{suffix}"):
                    found[suffix] = read()
            if len(found) == len(suffixes):
                return found
        missing = [suffix for suffix in suffixes if suffix not in found]
        raise FileNotFoundError(f"no {' and no '.join(missing)} in {self.root} or in an archive there")


def _text(path: Path) -> str:
    """With forward slashes; bytes that are no UTF-8 become question marks."""
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def members(path: Path) -> Iterator[tuple[str, Read]]:
    """The files in a tar archive, and in archives in it, under `name.tar/`.

    Raises:
      ValueError: for an archive that is broken, or with a path that leads out of it, a link or a device.
    """
    with path.open("rb") as file:
        yield from _members(file, path.name)
        # Without the zeros that end an archive, `tarfile` takes one that was cut between two files for a shorter one.
        file.seek(-min(512, path.stat().st_size), io.SEEK_END)
        if not _compressed(path) and any(file.read()):
            raise ValueError(f"The archive {path.name} is broken or cut short: its end is missing.")


def _compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


class _Counted:
    """A file, and how many bytes were read of it."""

    def __init__(self, file: Any):
        self._file, self.so_far = file, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        found = self._file.read(size)
        self.so_far += len(found)
        return found


class _Ending(_Counted):
    """A file whose end is an error: `tarfile` would go on to ask for bytes that a size of the archive claims."""

    def __init__(self, file: Any, packed: _Counted | None):
        super().__init__(file)
        self._packed, self._beyond = packed, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes; the first times at the end none, with which an archive without padding ends."""
        found = super().read(size)
        self._beyond = 0 if found else self._beyond + 1
        if self._beyond > _READS_BEYOND:
            raise EOFError("it is shorter than it claims to be")
        if self._packed and self.so_far > max(PACKED[0], PACKED[1] * self._packed.so_far):
            raise EOFError(f"more is packed in it than images are, over {PACKED[1]} times its size")
        return found


class _Member(tarfile.TarInfo):
    """A file of an archive; a damaged header is an error, where `tarfile` would take it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """What a header of 512 bytes says."""
        try:
            found = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # pyright: ignore
            raise tarfile.ReadError(f"damaged header, {error}") from error
        if not found.isreg() and found.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a header of {found.size:,} bytes")
        return found


def _members(file: Any, archive: str) -> Iterator[tuple[str, Read]]:
    if archive.count("/") >= DEEPEST:  # the names of archives in archives
        raise ValueError(f"The archive {archive} lies in too many archives, more than {DEEPEST}. It is refused.")
    compressed = file.peek(2)[:2] == _GZIP
    packed = _Counted(file) if compressed else None
    stream: Any = gzip.GzipFile(fileobj=packed) if compressed else file  # pyright: ignore[reportArgumentType]
    ending: Any = _Ending(stream, packed)  # of a file all that `tarfile` asks for here
    with _told_of(archive), tarfile.open(fileobj=ending, mode="r|", tarinfo=_Member) as tar:
        for member in tar:
            name = _checked(member, archive)
            if name and name.endswith(ARCHIVES):
                inner = tar.extractfile(member)
                yield from ((f"{name}/{inside}", read) for inside, read in _members(inner, f"{archive}/{name}"))
            elif name:
                yield name, lambda member=member: _contents(tar, member, archive)
        rest: Any = tar.fileobj
        while piece := rest.read(2**20):  # to the end, where a missing piece shows
            if b"ustar" in piece:  # a header: zeros, as a download that was cut leaves them, look like the end
                raise EOFError("files lie behind its end")


@contextlib.contextmanager
def _told_of(archive: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, OverflowError, MemoryError) as error:
        raise ValueError(f"The archive {archive} is broken or cut short: {error}.") from error


def _checked(member: tarfile.TarInfo, archive: str) -> str | None:
    """The path of a regular file, None for a folder."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or path.drive:
        raise ValueError(f"The archive {archive} has a path that leads out of it: {member.name!r}. It is refused.")
    if not (member.isreg() or member.isdir()):
        raise ValueError(f"The archive {archive} has a link or a device: {member.name!r}. It is refused.")
    if member.issparse() or member.size < 0:
        raise ValueError(
            f"The archive {archive} has a file of which parts are left out: {member.name!r}. It is refused."
        )
    return path.as_posix() if member.isreg() else None


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: str) -> bytes:
    if member.size > LARGEST_FILE:
        raise ValueError(f"{member.name!r} in {archive} has {member.size:,} bytes: more than {LARGEST_FILE:,}.")
    with _told_of(archive):
        file = tar.extractfile(member)
        assert file is not None  # it is a regular file
        return file.read()
