"""Transfer: pretrain under every arm with every seed, then probe the frozen features on every target."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vcreg_jax as vc
from train import loop, probe
from train.config import Candidate, Target, TrainConfig, Transfer
from train.data import pipeline
from train.features import extract
from train.probe import Split
from train.run_folder import claim, provenance, write_json


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
    _check(config)
    with claim(folder, config):
        chosen = {arm: _chosen(config, arm, folder / arm) for arm in config.arms}
        for seed in config.seeds:
            for arm, candidate in chosen.items():
                directory = folder / arm / f"seed{seed}"
                if not (directory / "result.json").exists():
                    write_json(directory / "result.json", _tested(config, arm, candidate, seed, directory))
    seconds = time.perf_counter() - started
    write_json(folder / "transfer.json", {"name": config.name, **provenance(config, command, seconds)})
    return folder


def _check(config: Transfer) -> None:
    if not config.seeds or not config.arms or not config.targets:
        raise ValueError(
            f"Transfer needs a seed, an arm and a target, got {config.seeds}, {list(config.arms)} and "
            f"{list(config.targets)}."
        )
    tried = {arm: len(candidates) for arm, candidates in config.arms.items()}
    if len(set(tried.values())) > 1:
        raise ValueError(f"Every arm must have as many candidates, which is a fair search, got {tried}.")
    if config.tuning_seed in config.seeds:
        raise ValueError(f"tuning_seed must not be one of the seeds that are reported, got {config.tuning_seed}.")
    for candidates in config.arms.values():
        for candidate in candidates:
            loop.prepare(_recipe(config.train, candidate), candidate.sites)
    for target in config.targets.values():
        for split in ("train", "test") if target.held_out is not None else ("train", "validation", "test"):
            pipeline.load(target.data, split, target.probe.label)


def _recipe(train: TrainConfig, candidate: Candidate) -> TrainConfig:
    if candidate.weight_decay is None:
        return train
    rule = replace(train.optimizer.rule, weight_decay=candidate.weight_decay)
    return replace(train, optimizer=replace(train.optimizer, rule=rule))


def _chosen(config: Transfer, arm: str, folder: Path) -> Candidate:
    """The candidate whose probes are best on validation images, the mean over targets; the first one of equals."""
    candidates = config.arms[arm]
    if len(candidates) == 1:
        return candidates[0]
    scores = []
    for index, candidate in enumerate(candidates):
        path = folder / f"tuning{index}" / "result.json"
        if not path.exists():
            write_json(path, _validated(config, arm, candidate, path.parent))
        found = json.loads(path.read_text())["targets"]
        scores.append(float(np.mean([found[name]["validation_accuracy"] for name in config.targets])))
    best = int(np.argmax(scores))
    write_json(folder / "tuning.json", {"mean_validation_accuracy": scores, "chosen": best})
    return candidates[best]


def _validated(config: Transfer, arm: str, candidate: Candidate, directory: Path) -> dict[str, Any]:
    trained = _pretrained(config, arm, candidate, config.tuning_seed, directory)
    targets = {}
    for name, target in config.targets.items():
        train, val = _features(config, trained, target, ("train", "validation"))
        selection = probe.select(train, val, **_how(target))
        targets[name] = {
            "validation_accuracy": float(selection.validation_accuracy.max()),
            "l2": selection.l2,
            "converged": bool(selection.fit.converged.all()),
        }
    return {"pretraining_validation_accuracy": trained.validation_accuracy, "targets": targets}


def _tested(config: Transfer, arm: str, candidate: Candidate, seed: int, directory: Path) -> dict[str, Any]:
    trained = _pretrained(config, arm, candidate, seed, directory)
    data = pipeline.load(config.train.data, "test")
    with jax.set_mesh(trained.mesh):
        pretraining = loop.evaluate(trained.predict, data, config.train.batch_size, trained.mesh)
    targets = {}
    for name, target in config.targets.items():
        splits = _features(config, trained, target, ("train", "validation", "test"))
        found = probe.select_and_test(*splits, **_how(target))
        if not found.converged:
            where = f"{arm}, seed {seed}, {name}"
            print(f"{where}: the probe stopped at gradient {found.worst_gradient_norm:.1e}", file=sys.stderr)
        targets[name] = {
            "accuracy": found.test_accuracy,
            "validation_accuracy": float(found.validation_accuracy.max()),
            "l2": found.l2,
            "converged": found.converged,
            "protocol": found.protocol,
            "effective_rank": float(vc.metrics.effective_rank(jnp.asarray(splits[0].features))),
            "images": [len(np.asarray(split.labels)) for split in splits],
        }
    return {"pretraining_accuracy": pretraining["accuracy"], "targets": targets}


def _pretrained(config: Transfer, arm: str, candidate: Candidate, seed: int, directory: Path) -> loop.Trained:
    title = f"{arm}, {directory.name}"
    return loop.train(_recipe(config.train, candidate), candidate.sites, seed, directory, title)


def _how(target: Target) -> dict[str, Any]:
    config = target.probe
    return {
        "num_classes": pipeline.load(target.data, "train", config.label).num_classes,
        "l2": probe.l2_grid(config.l2_low, config.l2_high, config.l2_count),
        "metric": config.metric,
        "standardize": config.standardize,
        "tolerance": config.tolerance,
        "max_iterations": config.max_iterations,
    }


def _features(config: Transfer, trained: loop.Trained, target: Target, names: tuple[str, ...]) -> list[Split]:
    """The named splits; of training images those held out are "validation", if that is how it is made."""

    def split(name: str) -> Split:
        data = pipeline.load(target.data, name, target.probe.label)
        with jax.set_mesh(trained.mesh):
            return Split(*extract(trained.predict, data, config.train.batch_size, trained.mesh))

    if target.held_out is None:
        return [split(name) for name in names]
    whole = split("train")
    out = held_out(np.asarray(whole.labels), target.held_out)
    parts = {"train": _rows(whole, ~out), "validation": _rows(whole, out)}
    return [parts[name] if name in parts else split(name) for name in names]


def _rows(split: Split, which: np.ndarray) -> Split:
    return Split(np.asarray(split.features)[which], np.asarray(split.labels)[which])


def held_out(labels: np.ndarray, how_many: float | int) -> np.ndarray:
    """Which training images validate, bool (n,): a share of them, or so many of every class, by a fixed seed.

    Raises:
      ValueError: for a share not within 0..1, and for a class that would have nothing left to train on.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    if isinstance(how_many, float):
        if not 0 < how_many < 1:
            raise ValueError(f"held_out must be a share between 0 and 1 or a number of images, got {how_many}.")
        chosen = order[: round(how_many * len(labels))]
    else:
        of_class = [order[labels[order] == label] for label in np.unique(labels)]
        if how_many < 1 or (least := min(map(len, of_class))) <= how_many:
            raise ValueError(f"held_out must leave each class an image, got {how_many} where the fewest are {least}.")
        chosen = np.concatenate([rows[:how_many] for rows in of_class])
    return np.isin(np.arange(len(labels)), chosen)
