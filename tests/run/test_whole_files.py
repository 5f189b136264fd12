"""What is written is whole or as it was before; arrays are read within bounds."""

import io
import os
import resource
import signal
import zipfile

import numpy as np
import pytest

from train.files import arrays, json_files, whole_files


@pytest.fixture
def small_disk():
    """Writes beyond 20,000 bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)


def _arrays(path, size):
    with whole_files.replace(path) as partial, partial.open("wb") as file:
        np.savez(file, noise=np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


WRITERS = {
    "text": lambda path, size: whole_files.write(path, "ä" * (size // 2)),
    "bytes": lambda path, size: whole_files.write(path, bytes(size)),
    "json": lambda path, size: json_files.write(path, {"text": "a" * size}),
    "arrays": _arrays,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path, small_disk, kind):
    path = tmp_path / "result.json"
    with pytest.raises(OSError, match=rf"^{path} cannot be written: File too large\.$"):
        WRITERS[kind](path, 40_000)
    assert list(tmp_path.iterdir()) == []
    WRITERS[kind](path, 10_000)
    before = path.read_bytes()
    assert len(before) >= 10_000
    with pytest.raises(OSError, match="cannot be written") as caught:
        WRITERS[kind](path, 40_000)
    assert caught.value.errno in whole_files.NO_ROOM
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"result.json": before}


def test_what_a_link_leads_to_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in ("file", "pipe"):
        (tmp_path / f"to_{target}").symlink_to(tmp_path / target)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for link in ("to_file", "to_pipe"):
        whole_files.write(tmp_path / link, "text")
    assert (tmp_path / "file").read_text() == "text" and os.read(reader, 9) == b"text"
    os.close(reader)
    assert {path.name: path.is_symlink() for path in tmp_path.iterdir()} == {
        "file": False,
        "pipe": False,
        "to_file": True,
        "to_pipe": True,
    }


def test_arrays_that_claim_far_more_than_they_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "EXPANDS", (2**20, 100))
    np.savez_compressed(tmp_path / "small.npz", zeros=np.zeros(2**19, np.uint8))
    assert arrays.read(tmp_path / "small.npz")["zeros"].shape == (2**19,)
    np.savez_compressed(tmp_path / "large.npz", zeros=np.zeros(2**23, np.uint8))
    with pytest.raises(ValueError, match=r"large.npz cannot be read: its [\d,]+ bytes claim 8,388,\d+, more than 100"):
        arrays.read(tmp_path / "large.npz")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as packed:  # in the array's own header
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (2**62,)})
        packed.writestr("a.npy", content.getvalue())
    with pytest.raises(ValueError, match=r"lies.npz cannot be read"):
        arrays.read(tmp_path / "lies.npz")
