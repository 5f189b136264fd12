"""Pretraining: train under every arm with every seed, and say how well each does on validation images."""

import statistics
import time
from pathlib import Path
from typing import Any

from train.config import Pretraining
from train.data import pipeline
from train.files import json_files
from train.run import hosts
from train.run.folder import provenance, write_json
from train.trainer import loop


def run(config: Pretraining, command: str) -> Path:
    """Runs what is not yet done of `config` and returns the run folder, complete.

    Everything lies under `runs_directory/name/`: `pretraining.json`, and per arm and seed `metrics.jsonl`,
    `checkpoints/` and `result.json`. An interrupted run goes on where its last checkpoint is.

    Raises:
      ValueError: before any work, for a config that cannot run or that differs from the one in the folder.
    """
    started = time.perf_counter()
    folder = Path(config.runs_directory) / config.name
    with hosts.claimed(folder, config, lambda: _checked(config)):
        for arm, seed, directory in hosts.unfinished(folder, config.arms, config.seeds):
            trained = loop.train(config.train, config.arms[arm], seed, directory, f"{arm}, seed {seed}")
            write_json(directory / "result.json", {"validation_accuracy": trained.validation_accuracy})
    seconds = time.perf_counter() - started
    write_json(folder / "pretraining.json", {"name": config.name, **provenance(config, command, seconds)})
    return folder


def _checked(config: Pretraining) -> dict[str, Any]:
    """What all hosts must have alike; ValueError for a config that cannot run."""
    if not config.seeds or not config.arms:
        raise ValueError(f"Pretraining needs a seed and an arm, got {config.seeds} and {list(config.arms)}.")
    for sites in config.arms.values():
        loop.prepare(config.train, sites)
    return hosts.description(config, [pipeline.load(config.train.data, split) for split in ("train", "validation")])


def table(config: Pretraining, folder: Path) -> str:
    """Validation accuracy by arm: n, mean and standard deviation (n - 1) over seeds."""
    width = max(len(arm) for arm in config.arms)
    lines = [f"{'':{width}}  validation accuracy" + (f"   the paper: {config.paper}" if config.paper else "")]
    for arm in config.arms:
        files = [folder / arm / f"seed{seed}" / "result.json" for seed in config.seeds]
        values = [100 * json_files.read(file)["validation_accuracy"] for file in files]
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(f"{arm:{width}}  {statistics.mean(values):.2f}{spread} % (n = {len(values)})")
    return "\n".join(lines)
