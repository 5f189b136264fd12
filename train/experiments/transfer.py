"""Transfer: pretrain under every arm with every seed, then probe the frozen features on every target."""

import functools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.config import Candidate, TrainConfig, Transfer
from train.data import pipeline
from train.experiments import targets
from train.experiments.targets import FeaturesOf
from train.files import json_files
from train.run import hosts
from train.run.folder import provenance, write_json
from train.trainer import loop
from train.trainer.evaluation import Trained, evaluate
from train.trainer.features import cached


def run(config: Transfer, command: str) -> Path:
    """Runs what is not yet done of `config` and returns the run folder, complete.

    Everything lies under `runs_directory/name/`: `transfer.json`, and per arm a folder `tuning<i>` for each candidate
    and `seed<k>` for each seed, with `metrics.jsonl`, `checkpoints/` and `result.json`. Test images are looked at in
    the latter alone, once. An interrupted run goes on where its last checkpoint is.

    Raises:
      ValueError: before any work, for a config that cannot run or that differs from the one in the folder.
    """
    started = time.perf_counter()
    folder = Path(config.runs_directory) / config.name
    with hosts.claimed(folder, config, lambda: _checked(config)):
        chosen = {arm: _chosen(config, arm, folder / arm) for arm in config.arms}
        for arm, seed, directory in hosts.unfinished(folder, config.arms, config.seeds):
            write_json(directory / "result.json", _tested(config, arm, chosen[arm], seed, directory))
    seconds = time.perf_counter() - started
    write_json(folder / "transfer.json", {"name": config.name, **provenance(config, command, seconds)})
    return folder


def _checked(config: Transfer) -> dict[str, Any]:
    """What all hosts must have alike; ValueError for a config that cannot run."""
    if not config.seeds or not config.arms or not config.targets:
        raise ValueError(
            f"Transfer needs a seed, an arm and a target, got {config.seeds}, {list(config.arms)} and "
            f"{list(config.targets)}."
        )
    tried = {arm: len(candidates) for arm, candidates in config.arms.items()}
    if len(set(tried.values())) > 1 or 0 in tried.values():
        raise ValueError(f"Every arm must have as many candidates, at least one, for a fair search, got {tried}.")
    for candidates in config.arms.values():
        for candidate in candidates:
            loop.prepare(_recipe(config.train, candidate), candidate.sites)
    splits = [pipeline.load(config.train.data, split) for split in targets.NAMES]
    for name, target in config.targets.items():
        splits += targets.check(name, target)
    return hosts.description(config, splits)


def _recipe(train: TrainConfig, candidate: Candidate) -> TrainConfig:
    rule, schedule = train.optimizer.rule, train.optimizer.schedule
    if candidate.weight_decay is not None:
        rule = replace(rule, weight_decay=candidate.weight_decay)
    if candidate.peak_learning_rate is not None:
        schedule = replace(schedule, peak_learning_rate=candidate.peak_learning_rate)
    return replace(train, optimizer=replace(train.optimizer, rule=rule, schedule=schedule))


def _chosen(config: Transfer, arm: str, folder: Path) -> Candidate:
    """The candidate whose probes are best on validation images, the mean over targets; the first one of equals."""
    candidates = config.arms[arm]
    if len(candidates) == 1:
        return candidates[0]
    scores = []
    for index, candidate in enumerate(candidates):
        path = folder / f"tuning{index}" / "result.json"
        if not hosts.first_says(path.exists()):
            write_json(path, _validated(config, arm, candidate, path.parent))
            hosts.first_says(True)  # that it is written
        found = json_files.read(path)["targets"]
        scores.append(float(np.mean([found[name]["validation_accuracy"] for name in config.targets])))
    best = int(np.argmax(scores))
    write_json(folder / "tuning.json", {"mean_validation_accuracy": scores, "chosen": best})
    return candidates[best]


def _validated(config: Transfer, arm: str, candidate: Candidate, directory: Path) -> dict[str, Any]:
    trained, features_of = _pretrained(config, arm, candidate, config.tuning_seed, directory)
    found = {name: targets.validated(target, features_of) for name, target in config.targets.items()}
    return {"pretraining_validation_accuracy": trained.validation_accuracy, "targets": found}


def _tested(config: Transfer, arm: str, candidate: Candidate, seed: int, directory: Path) -> dict[str, Any]:
    trained, features_of = _pretrained(config, arm, candidate, seed, directory)
    accuracy = trained.validation_accuracy
    if config.train.joint_embedding is None:
        data = pipeline.load(config.train.data, "test")
        with jax.set_mesh(trained.mesh):
            accuracy = evaluate(trained.predict, data, config.train.batch_size, trained.mesh)["accuracy"]
    found = {}
    for name, target in config.targets.items():
        found[name] = targets.tested(target, features_of)
        if not found[name]["converged"]:
            norm = found[name]["worst_gradient_norm"]
            print(f"{arm}, seed {seed}, {name}: the probe stopped at gradient {norm:.1e}", file=sys.stderr)
        print(f"{arm}, seed {seed}, {name}: {found[name]['accuracy']:.2%}; {found[name]['protocol']}")
    return {"pretraining_accuracy": accuracy, "targets": found}


def _pretrained(
    config: Transfer, arm: str, candidate: Candidate, seed: int, directory: Path
) -> tuple[Trained, FeaturesOf]:
    """The network, and its features of any split."""
    recipe = _recipe(config.train, candidate)
    trained = loop.train(recipe, candidate.sites, seed, directory, f"{arm}, {directory.name}")
    return trained, functools.partial(cached, directory / "features", trained, recipe)
