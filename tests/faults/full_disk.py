"""A disk that is really full, a tmpfs, under every command that writes; needs the right to mount one.

python -m tests.faults.full_disk FOLDER
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.faults.victim import ROOT, STEPS, Victim, check_equal, fresh, wait_for
from train.data import builders, hashes

MEGABYTES = 24
FULL = "No space left on device"


def main(folder: Path) -> None:
    """Prints what happened; fails if a step is lost, a file is half written or more than a line is said."""
    prepare(folder)
    commands(folder)
    run(folder)


def prepare(folder: Path) -> None:
    """Of every size that a disk may have, the data set is whole or it is a line and nothing is left."""
    source, disk = fresh(folder / "images") / "noise.npz", folder / "disk_prepare"
    pixels = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), dtype=np.uint8)
    np.savez(source, x_train=pixels[:80], y_train=np.arange(80) % 2, x_test=pixels[80:], y_test=np.arange(20) % 2)
    prepared = builders.prepare("noise", source, fresh(folder / "roomy"))
    needed = sum(path.stat().st_size for path in prepared.iterdir()) // 1024
    sizes, refused = [4, 64, 512, *range(needed - 60, needed + 120, 4)], 0
    for kilobytes in sizes:
        with mount(disk, f"{kilobytes}k"):
            try:
                hashes.check(builders.prepare("noise", source, disk))
            except OSError as error:
                assert f"{FULL}. Nothing of it is left." in str(error), error
                assert not [path for path in disk.rglob("*") if path.is_file()]
                refused += 1
    assert 0 < refused < len(sizes)
    print(f"prepare: {len(sizes)} sizes of a disk, {refused} too small, each a line and no file left", flush=True)


def commands(folder: Path) -> None:
    """What writes beside a finished run leaves every file as it was."""
    whole, disk = folder / "finished", folder / "disk_commands"
    if not (whole / "digits" / "experiment.json").exists():
        _run("run", "configs/digits.py", "--train.steps", "60", "--seeds", "0", "--runs-directory", str(whole))
    with mount(disk, f"{MEGABYTES}m"):
        shutil.copytree(whole / "digits", disk / "digits")
        _fill(disk / "ballast")
        before, seed = _bits(disk), disk / "digits" / "VCReg" / "seed0"
        for command in (
            ("report", str(disk / "digits")),
            ("analyse", str(disk / "digits"), "--critic-steps", "3"),
            ("export", str(seed), "--to", "safetensors"),
            ("export", str(seed), "--to", "stablehlo"),
            ("convert", str(seed / "checkpoints"), str(disk / "a.safetensors")),
            ("convert", str(seed / "checkpoints"), str(disk / "a.pth")),
        ):
            status, said = _run(*command)
            errors = said.strip().splitlines()
            assert status == 2 and len(errors) == 1 and errors[0].endswith(f"cannot be written: {FULL}."), said
            assert _bits(disk) == before
            print(f"{command[0]}: exit status 2, nothing changed; {errors[0]}", flush=True)


def _run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "train", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stderr


def _bits(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def mount(disk: Path, size: str) -> Iterator[None]:
    """A file system of that size on the folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(fresh(disk))], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def run(folder: Path) -> None:
    """A run whose disk becomes full ends with the bits of one with room, or stops where it was told to."""
    straight = Victim(fresh(folder / "with_room"))
    assert straight.finish() == 0, straight.said()
    for on_save_error in ("continue", "stop"):
        disk = folder / f"disk_{on_save_error}"
        with mount(disk, f"{MEGABYTES}m"):
            victim = Victim(disk, "--train.checkpoints.on-save-error", on_save_error)
            process, ballast = victim.start(), disk / "ballast"
            assert wait_for(lambda v=victim: v.step() >= 60, process), victim.said()
            _fill(ballast)
            full_at, saved = victim.step(), victim.saved()
            if on_save_error == "stop":
                status = process.wait()
                (line,) = [line for line in victim.said().splitlines() if line.startswith("error: ")]
                assert status == 2 and "could not be saved" in line and FULL in line, victim.said()
                assert saved[-1] in victim.saved()
                print(f"stop: full at step {full_at}, exit status {status}, checkpoints {victim.saved()}; {line[:160]}")
                ballast.unlink()
                assert victim.finish() == 0, victim.said()
            else:
                assert wait_for(lambda v=victim: v.said().count("could not be saved") >= 3, process), victim.said()
                assert saved[-1] in victim.saved(), "an older checkpoint is gone"
                ballast.unlink()
                assert process.wait() == 0, victim.said()
                warnings = [line for line in victim.lines() if line["split"] == "warning"]
                assert len(warnings) >= 3 and all(FULL in line["message"] for line in warnings)
                print(f"continue: full at step {full_at}, {len(warnings)} saves failed, each a line in metrics.jsonl")
                print(f"  {warnings[0]['message']}")
                beside = [line for line in victim.said().splitlines() if FULL in line or "Traceback" in line]
                assert len(beside) == len(warnings), victim.said()  # a line for each, and nothing more
            print(f"{on_save_error}: after {STEPS} steps {check_equal(victim, straight)}", flush=True)


def _fill(ballast: Path) -> None:
    """Writes until nothing fits any more."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


if __name__ == "__main__":
    main(Path(sys.argv[1]))
