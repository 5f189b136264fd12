"""Single bits flipped at random in a run folder and the prepared data set that it was trained on.

python -m tests.faults.flip_bits FOLDER [FLIPS]

Each must be refused, named, or harmless: all that can be read is what was written, to the bit.
"""

import collections
import contextlib
import hashlib
import io
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs import digits
from tests.faults import victim
from train.config import Experiment
from train.data import pipeline
from train.files import arrays, json_files
from train.run import folder as run_folder
from train.run.checkpoint_format import read_arrays
from train.trainer import features

FLIPS, SEED = 1000, 0


def get_config() -> Experiment:
    """This file is also the run's config: a victim whose features are kept and probed."""
    return replace(victim.get_config(), targets=digits.get_config().targets)


def main(folder: Path, flips: int = FLIPS) -> None:
    """Prints what became of the flips, half of them in any file with the same chance, half anywhere; fails for one
    that is silent."""
    run = victim.Victim(victim.fresh(folder / "flipped"), "--train.steps", "60", config=__file__)
    assert run.finish() == 0, run.said()
    parts = {folder / "flipped" / "victim": _read_run, folder / "data" / "digits": _read_data}
    files = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
    sizes, draw = [path.stat().st_size for path in files], random.Random(SEED)
    good = {part: read(part) for part, read in parts.items()}
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    silent = []
    for number in range(flips):
        (path,) = draw.choices(files, None if number % 2 else sizes)
        if not path.stat().st_size:
            outcomes["empty"][path.name] += 1
            continue
        (part,) = (part for part in parts if path.is_relative_to(part))
        outcome = _outcome(path, draw, lambda part=part: parts[part](part) == good[part])
        outcomes[outcome][path.name] += 1
        if outcome == "SILENT":
            silent.append(path)
        if (number + 1) % 50 == 0:
            print(f"{number + 1}: { ({name: found.total() for name, found in outcomes.items()}) }", flush=True)
    for outcome, names in outcomes.items():
        print(f"{outcome}: {names.total()}, most in {dict(names.most_common(6))}")
    print(f"{flips} single bits in {len(files)} files of {sum(sizes):,} bytes, seed {SEED}; silent: {len(silent)}")
    assert not silent, silent


def _outcome(path: Path, draw: random.Random, is_as_written: Callable[[], bool]) -> str:
    content = path.read_bytes()
    changed, said = bytearray(content), io.StringIO()
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    path.write_bytes(changed)
    try:
        with contextlib.redirect_stderr(said):
            same = is_as_written()
    except (ValueError, OSError) as error:  # which `python -m train` prints as one line
        return "refused, naming the file" if path.name in str(error) else "refused, naming its folder"
    finally:
        path.write_bytes(content)
    return "harmless, all as written" if same else "named on stderr" if "taken as" in said.getvalue() else "SILENT"


def _read_run(folder: Path) -> dict[str, str]:
    """All that the commands read of a run: its config, results, metrics and checkpoints."""
    run_folder.check(folder)
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name in ("config.json", "data.json", "result.json", "experiment.json"):
            found[str(path)] = json_files.text_hash(json_files.read(path))
    for path in folder.rglob("metrics.jsonl"):
        found[str(path)] = json_files.text_hash(json_files.read_lines(path.read_text(), path))
    for path in folder.rglob(run_folder.ARRAYS):
        for name, array in arrays.read(path).items():
            found[f"{path}/{name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    for path in folder.rglob("features/*/index.json"):
        described = {
            name: value for name, value in json_files.read(path).items() if name not in ("shape", "files_sha256")
        }
        kept = b"".join(np.ascontiguousarray(array).tobytes() for array in features._open(path.parent, described))
        found[str(path)] = hashlib.sha256(kept).hexdigest()
    for path in folder.rglob("checkpoints/[0-9]*"):
        for name, array in read_arrays(path)[0].items():
            found[f"{path}/{name}"] = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
    return found


def _read_data(folder: Path) -> dict[str, str]:
    """All images and labels of the data set, and its classes."""
    config = replace(victim.get_config().train.data, directory=str(folder.parent))
    found = {}
    for split in ("train", "validation", "test"):
        pipeline.load.cache_clear()
        data = pipeline.load(config, split)
        records = data.selection.records.__getitems__(data.selection.indices.tolist())
        encoded = b"".join(record["image"] for record in records)
        found[split] = hashlib.sha256(encoded + data.labels().tobytes()).hexdigest() + str(data.class_names)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
