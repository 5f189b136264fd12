"""Real training processes to be killed, and what they left behind. Used by the scripts beside it; see `make faults`."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs import digits
from train.config import Experiment
from train.run.checkpoint_format import read_arrays

ROOT = Path(__file__).parents[2]
STEPS = 300


def get_config() -> Experiment:
    """This file is also the victims' config: a run of the digits with VCReg, every step logged."""
    whole = digits.get_config()
    train = replace(whole.train, steps=STEPS, log_every=1, eval_every=50, save_every=10)
    return Experiment("victim", "victim", train, {"VCReg": whole.arms["VCReg"]}, seeds=(0,))


class Victim:
    """One run folder in `folder`, and the process that works on it."""

    def __init__(self, folder: Path, *options: str, config: str = __file__):
        self.folder, self._options, self._config = folder, options, config
        self._run = folder / "victim" / "VCReg" / "seed0"
        self.checkpoints = self._run / "checkpoints"

    def start(self) -> subprocess.Popen:
        """`python -m train run`; programs are compiled once and kept, as JAX offers."""
        command = [sys.executable, "-m", "train", "run", self._config, "--runs-directory", str(self.folder)]
        command += self._options
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "compiled"), "JAX_PLATFORMS": "cpu"}
        cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        error = (self.folder.parent / f"{self.folder.name}.stderr").open("a")
        data = ["--train.data.directory", str(self.folder.parent / "data")]
        return subprocess.Popen([*command, *data], cwd=ROOT, env=os.environ | cache, stdout=error, stderr=error)

    def finish(self) -> int:
        """Runs to the end; the exit status."""
        return self.start().wait()

    def said(self) -> str:
        """All that the processes printed."""
        return (self.folder.parent / f"{self.folder.name}.stderr").read_text()

    def lines(self) -> list[dict]:
        """The whole lines of `metrics.jsonl`."""
        path = self._run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]

    def step(self) -> int:
        """The last step whose metrics were written."""
        return max((line["step"] for line in self.lines() if line["split"] == "train"), default=-1)

    def saved(self) -> list[int]:
        """The steps of whole checkpoints."""
        names = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        return sorted(int(path.name) for path in names if path.name.isdigit())

    def final(self) -> dict[str, bytes]:
        """The bits of every array of the last checkpoint."""
        arrays, _ = read_arrays(self.checkpoints / str(self.saved()[-1]))
        return {path: np.asarray(array).tobytes() for path, array in arrays.items()}

    def metrics(self) -> list[dict]:
        """What was logged, without times and warnings, in the order of steps."""
        kept = [line for line in self.lines() if line["split"] != "warning"]
        measured = ("time", "data_wait", "images_per_second", "sha256")
        plain = [{name: value for name, value in line.items() if name not in measured} for line in kept]
        return sorted(plain, key=lambda line: (line["step"], line["split"]))


def check_equal(victim: Victim, straight: Victim) -> str:
    """One line when both runs ended with the same bits and logged the same, else an AssertionError."""
    ours, theirs = victim.final(), straight.final()
    assert ours.keys() == theirs.keys()
    different = [path for path in ours if ours[path] != theirs[path]]
    assert not different, f"other bits in {different}"
    assert victim.saved()[-1] == straight.saved()[-1]
    assert victim.metrics() == straight.metrics(), "other metrics"
    steps = [line["step"] for line in victim.metrics() if line["split"] == "train"]
    assert steps == list(range(victim.saved()[-1])), "a step is missing or there twice"
    size = sum(map(len, ours.values()))
    logged = f"{len(steps)} steps logged, each once, with the same numbers"
    return f"{len(ours)} arrays, {size:,} bytes equal to the last bit; {logged}"


def wait_for(condition, process: subprocess.Popen, pause: float = 0.002) -> bool:
    """Whether the condition came true while the process ran."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(pause)
    return False


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
