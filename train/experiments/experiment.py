"""An experiment: train under every arm with every seed, probe the frozen features, compare."""

import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vcreg_jax as vc
from train.config import Experiment, ProbeConfig
from train.data import pipeline
from train.run import hosts
from train.run.folder import ARRAYS_HASH, file_hash, provenance, write_json
from train.run.watchdog import Watchdog
from train.trainer import loop
from train.trainer.evaluation import evaluate
from train.trainer.features import extract
from vcreg_jax import Sites
from vcreg_jax.probes import linear


def run(config: Experiment, command: str) -> Path:
    """Runs what is not yet done of `config` and returns the run folder, complete.

    Everything lies under `runs_directory/name/`: `experiment.json`, and per arm and seed `metrics.jsonl`,
    `checkpoints/`, `result.json` and `features.npz`. An interrupted run goes on where its last checkpoint is.

    Raises:
      ValueError: before any work, for a config that cannot run or that differs from the one in the folder.
    """
    started = time.perf_counter()
    folder = Path(config.runs_directory) / config.name
    with hosts.claimed(folder, config, lambda: _checked(config)):
        for arm, seed, directory in hosts.unfinished(folder, config.arms, config.seeds):
            _train_and_probe(config, arm, config.arms[arm], seed, directory)
    seconds = time.perf_counter() - started
    write_json(folder / "experiment.json", _description(config, command, seconds))
    return folder


def _train_and_probe(config: Experiment, arm: str, sites: Sites, seed: int, directory: Path) -> None:
    trained = loop.train(config.train, sites, seed, directory, f"{arm}, seed {seed}")
    batch_size = config.train.batch_size
    with jax.set_mesh(trained.mesh), Watchdog(config.train.hang_seconds) as watchdog:
        watchdog.compiled()
        beat = functools.partial(watchdog.beat, "a batch of features")
        test = evaluate(trained.predict, pipeline.load(config.train.data, "test"), batch_size, trained.mesh, beat)
        splits = {}
        for name in ("train", "validation", "test"):
            data = pipeline.load(config.train.data, name, config.probe.label)
            splits[name] = linear.Split(*extract(trained.predict, data, batch_size, trained.mesh, beat))
    train_features = jnp.asarray(splits["train"].features)
    strengths = linear.l2_grid(config.probe.l2_low, config.probe.l2_high, config.probe.l2_count)
    found = _probe(config.probe, splits, data.num_classes, strengths)
    if not hosts.is_first():
        return
    print(f"{arm}, seed {seed}: {found.test_accuracy:.2%}; {found.protocol}")
    if not found.converged:
        print(f"{arm}, seed {seed}: the probe stopped at gradient {found.worst_gradient_norm:.1e}", file=sys.stderr)
    np.savez(
        directory / "features.npz",
        test_features=splits["test"].features,
        test_labels=splits["test"].labels,
        singular_values=vc.metrics.singular_values(train_features),
        l2=strengths,
        validation_accuracy=found.validation_accuracy,
    )
    result = {
        ARRAYS_HASH: file_hash(directory / "features.npz"),
        "superclass_accuracy": test["accuracy"],
        "probe_accuracy": found.test_accuracy,
        "effective_rank": float(vc.metrics.effective_rank(train_features)),
        "probe_l2": found.l2,
        "probe_converged": found.converged,
        "probe_protocol": found.protocol,
    }
    write_json(directory / "result.json", result)


def _probe(
    config: ProbeConfig, splits: dict[str, linear.Split], num_classes: int, l2: np.ndarray
) -> linear.ProbeResult:
    return linear.select_and_test(
        splits["train"],
        splits["validation"],
        splits["test"],
        num_classes,
        l2,
        metric=config.metric,
        standardize=config.standardize,
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
        warm_start=config.warm_start,
        protocol=config.protocol,
    )


def _checked(config: Experiment) -> dict[str, Any]:
    """What all hosts must have alike; ValueError for a config that cannot run."""
    for sites in config.arms.values():
        loop.prepare(config.train, sites)
    data = [pipeline.load(config.train.data, split, config.probe.label) for split in ("train", "validation", "test")]
    if not config.seeds or len(config.arms) < 2:
        raise ValueError(f"An experiment needs a seed and two arms, got {config.seeds} and {list(config.arms)}.")
    return hosts.description(config, data)


def _description(config: Experiment, command: str, seconds: float) -> dict[str, Any]:
    data = pipeline.load(config.train.data, "test", config.probe.label)
    return {
        "name": config.name,
        "title": config.title,
        "paper": config.paper,
        "arms": list(config.arms),
        "seeds": list(config.seeds),
        "superclass_label": config.train.data.label,
        "probe_label": config.probe.label,
        "class_names": data.class_names,
        **provenance(config, command, seconds),
    }
