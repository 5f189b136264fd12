"""Damaged files for every reader: each must be read, or refused in one line, in ten seconds and a gigabyte.

python -m tests.faults.fuzz FOLDER [MUTATIONS]
"""

import collections
import io
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.victim import fresh
from train.data import builders, hashes, images, npz_file
from train.data.archives import Files
from train.files import json_files
from train.interop import convert

MUTATIONS, SECONDS, GIB, SEED = 20_000, 10, 2**30, 0
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"99999999", b"-1", b"NaN", b"[[[[")
Reader = Callable[[bytes], object]


class TooLongError(BaseException):
    """No reader catches it."""


def main(folder: Path, mutations: int = MUTATIONS) -> None:
    """Prints what became of the mutations of each kind of file; fails for a traceback, a hang, or a lie."""
    draw, faults = random.Random(SEED), collections.Counter()
    kinds = seeds(fresh(folder))
    signal.signal(signal.SIGALRM, _too_long)
    began = time.monotonic()
    for number, (kind, (files, read)) in enumerate(kinds.items()):
        count, outcomes, slowest, before = mutations // len(kinds), collections.Counter(), 0.0, _memory()
        count += number < mutations % len(kinds)
        for _ in range(count):
            damaged = mutated(draw.choice(files), draw)
            started = time.monotonic()
            outcome = _outcome(read, damaged)
            slowest = max(slowest, time.monotonic() - started)
            outcomes[outcome.splitlines()[0]] += 1
            if outcome not in ("read", "refused"):
                faults[f"{kind}: {outcome}"] += 1
        if (more := _memory() - before) > GIB:
            faults[f"{kind}: took {more / GIB:.1f} GiB"] += 1
        print(
            f"{kind}: {count} mutations, {dict(outcomes)}; slowest {slowest:.2f} s, {more >> 20} MiB more", flush=True
        )
    print(f"{mutations} mutations in {time.monotonic() - began:.0f} s, seed {SEED}")
    for fault, count in faults.items():
        print(f"FAULT, {count} times: {fault}")
    assert not faults


def seeds(folder: Path) -> dict[str, tuple[list[bytes], Reader]]:
    """Whole files of each kind, and what reads one of them."""
    import torch
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6) % 2
    weights = {"a.weight": rng.normal(size=(4, 3)).astype(np.float32), "a.bias": np.zeros(4, np.float32)}
    pth, npz, npz_small = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, pth)
    np.savez(npz, x_train=pixels, y_train=labels, class_names=np.array(["cat", "dog"]))
    np.savez_compressed(npz_small, images=pixels, labels=labels, is_test=labels)
    result = {"accuracy": 0.5, "targets": {"digits": {"l2": 1e-5}}, "name": "a"}
    json_files.write(folder / "result.json", result)
    for step in range(3):
        json_files.append(folder / "metrics.jsonl", {"step": step, "split": "train", "loss": 1 / (step + 1)})
    lines = (folder / "metrics.jsonl").read_bytes()
    good_lines = json_files.read_lines(lines.decode(), Path("metrics.jsonl"))
    prepared = builders.prepare("digits", None, folder / "data")
    (prepared / hashes.FILE).unlink()
    descriptions = {name: (prepared / name).read_bytes() for name in ("features.json", "dataset_info.json")}

    def description(name: str) -> tuple[list[bytes], Reader]:
        def read(damaged: bytes) -> None:
            (prepared / name).write_bytes(damaged)
            try:
                builders._opened(prepared)
            finally:
                (prepared / name).write_bytes(descriptions[name])

        return [descriptions[name]], read

    def file(name: str, read: Callable[[Path], object]) -> Reader:
        def written(damaged: bytes) -> object:
            (folder / name).write_bytes(damaged)
            return read(folder / name)

        return written

    def read_lines(damaged: bytes) -> None:
        found = json_files.read_lines(damaged.decode("utf-8", "replace"), Path("metrics.jsonl"))
        _check_said(found == good_lines[: len(found)])  # a file that ends sooner is one of a run that ended sooner

    return {
        "image": (_images(pixels[0]), lambda damaged: images.read(damaged, 3, "convert")),
        "npz": ([npz.getvalue(), npz_small.getvalue()], file("a.npz", _npz)),
        "pth": ([pth.getvalue()], file("a.pth", _weights)),
        "safetensors": ([save(weights)], file("a.safetensors", _weights)),
        "tar": (_tars(), file("a.tar", _tar)),
        "json": (
            [(folder / "result.json").read_bytes()],
            file("result.json", lambda path: _check_said(json_files.read(path) == result)),
        ),
        "jsonl": ([lines], read_lines),
        **{name: description(name) for name in descriptions},
    }


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four changes: bits, bytes, ranges of it, or its end."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place, size = draw.randrange(len(changed) + 1), draw.choice((1, 2, 4, 16, 256))
        match draw.randrange(6):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << draw.randrange(8)
            case 1:
                changed[place : place + size] = draw.randbytes(size)
            case 2:
                del changed[place : place + size]
            case 3:
                changed[place:place] = changed[place : place + size]
            case 4:
                extreme = draw.choice(EXTREMES)
                changed[place : place + len(extreme)] = extreme
            case _ if draw.random() < 0.2:
                del changed[place:]
    return bytes(changed)


_SAID = io.StringIO()


def _outcome(read: Reader, damaged: bytes) -> str:
    _SAID.seek(0)
    _SAID.truncate()
    stderr, sys.stderr = sys.stderr, _SAID
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        read(damaged)
        return "read"
    except (ValueError, OSError):
        return "refused"
    except TooLongError:
        return f"over {SECONDS} s"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {place.filename}:{place.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stderr = stderr


def _check_said(same: bool) -> None:
    """What is read is what was written, or a line on stderr says that nobody knows."""
    assert same or "taken as" in _SAID.getvalue(), "other content without a word"


def _too_long(*_: object) -> None:
    raise TooLongError


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _images(pixels: np.ndarray) -> list[bytes]:
    colour, files = Image.fromarray(pixels), []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    for form in ("jpeg", "png", "gif", "bmp", "tiff", "webp", "ppm"):
        options = {"exif": exif.tobytes()} if form in ("jpeg", "png", "webp") else {}
        for image in (colour, colour.convert("L"), *([colour.convert("RGBA")] if form in ("png", "webp") else [])):
            buffer = io.BytesIO()
            image.save(buffer, form, **options)
            files.append(buffer.getvalue())
    return files


def _npz(path: Path) -> None:
    contents = npz_file.read({"": path})
    for examples in contents.splits.values():
        for example in examples():
            images.read(example.image, contents.shape[2], "convert")


def _weights(path: Path) -> None:
    tensors, _ = convert._read(path)
    convert._check_finite(path, tensors)


def _tar(path: Path) -> None:
    found = [contents() for _, contents in Files(path)]
    # No file is lost without a word: headers have checksums. What is no longer named as an archive is a file itself.
    _check_said(sum(2 if len(each) > 10_000 else 1 for each in found) == 2)


def _tars() -> list[bytes]:
    import tarfile

    files, noise = [], np.random.default_rng(0).bytes(700)  # zeros would look like the end of an archive
    for mode in ("w", "w:gz"):
        inner, outer = io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as archive:
            for name in ("train/cat/1.jpg", "train/dog/2.jpg"):
                member = tarfile.TarInfo(name)
                member.size = 700
                archive.addfile(member, io.BytesIO(noise))
        with tarfile.open(fileobj=outer, mode=mode, format=tarfile.PAX_FORMAT) as archive:
            member = tarfile.TarInfo("ä" * 120 + ".tar")
            member.size = len(inner.getvalue())
            archive.addfile(member, io.BytesIO(inner.getvalue()))
        files += [inner.getvalue(), outer.getvalue()]
    return files


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
