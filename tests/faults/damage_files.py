"""A real checkpoint's files damaged: single bits flipped at random, every file cut in half, every file deleted.

python -m tests.faults.damage_files FOLDER
"""

import collections
import random
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from tests.faults.victim import Victim, fresh
from train.config import CheckpointConfig
from train.run.checkpoint_format import read_arrays
from train.run.checkpoints import Checkpoints

FLIPS = 50


def main(folder: Path) -> None:
    """Prints what became of each kind of damage; fails if arrays come back that are not those that were saved."""
    victim = Victim(fresh(folder / "damaged"), "--train.steps", "60")
    assert victim.finish() == 0, victim.said()
    whole, copy = victim.checkpoints, folder / "copy"
    older, newest = victim.saved()
    like = read_arrays(whole / str(older))[0]
    good = {step: _bits(read_arrays(whole / str(step))[0]) for step in (older, newest)}
    files = sorted(path.relative_to(whole) for path in (whole / str(newest)).rglob("*") if path.is_file())
    sizes = {file: (whole / file).stat().st_size for file in files}
    print(f"{len(files)} files: " + ", ".join(f"{file} {size:,}" for file, size in sizes.items()))
    draw = random.Random(0)
    by_size = draw.choices(files, weights=list(sizes.values()), k=FLIPS)
    by_file = draw.choices(files, k=FLIPS)
    kinds = {
        f"{FLIPS} single bits, anywhere with the same chance": [(file, _flipped) for file in by_size],
        f"{FLIPS} single bits, in every file with the same chance": [(file, _flipped) for file in by_file],
        "every file cut in half": [(file, _halved) for file in files],
        "every file deleted": [(file, None) for file in files],
    }
    for kind, damages in kinds.items():
        outcomes, harmless = collections.Counter(), collections.Counter()
        for file, change in damages:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            content = (copy / file).read_bytes()
            (copy / file).unlink() if change is None else (copy / file).write_bytes(change(content, draw))
            with Checkpoints(copy, CheckpointConfig(), {}) as checkpoints:
                restored = checkpoints.restore_newest(like)
            assert _bits(restored.state) == good[restored.step], f"WRONG NUMBERS after {kind}: {file}"
            outcome = "fell back in one line" if restored.step == older else "harmless, all arrays bit-equal"
            assert len(restored.warnings) == (restored.step == older)
            outcomes[outcome] += 1
            if restored.step == newest:
                harmless[file.name] += 1
        print(f"{kind}: {dict(outcomes)}; harmless in {dict(harmless)}", flush=True)


def _bits(arrays: dict[str, jax.Array]) -> dict[str, bytes]:
    return {path: np.asarray(array).tobytes() for path, array in arrays.items()}


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _halved(content: bytes, draw: random.Random) -> bytes:
    return content[: len(content) // 2]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
