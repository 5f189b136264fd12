"""An experiment: train under every arm with every seed, test, and probe the frozen features on every target."""

import functools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.config import Candidate, Experiment, Target, TrainConfig
from train.data import builders, checks, pipeline
from train.experiments import doubts, targets
from train.experiments.targets import Arrays, FeaturesOf
from train.files import arrays, json_files, whole_files
from train.interop import initial_weights
from train.run import folder as run_folder
from train.run import hosts
from train.run.folder import ARRAYS, ARRAYS_HASH, file_hash, provenance, write_json
from train.run.time_left import TimeLeft
from train.run.watchdog import Watchdog
from train.trainer import loop
from train.trainer.evaluation import Trained, evaluate
from train.trainer.features import extract_cached
from train.trainer.prepare import prepare
from vcreg_jax import Sites


def run(config: Experiment, command: str) -> Path:
    """Run what is not yet done of `config` and return the run folder, complete.

    Everything lies under `runs_directory/name/`: `experiment.json`, and per arm a folder `tuning<i>` for each candidate
    and `seed<k>` for each seed, with `metrics.jsonl`, `checkpoints/` and `result.json`. Test images are looked at in
    the latter alone, once. An interrupted run goes on where its last checkpoint is; targets that were added to a
    finished one are probed with its networks as they are.

    Raises:
      ValueError: before any work, for a config that cannot run or that differs from the one in the folder.
    """
    started = time.perf_counter()
    folder = Path(config.runs_directory) / config.name
    with hosts.claim_on_all(folder, config, lambda: _check(config)):
        time_left, said = TimeLeft(_count_networks(config, folder), config.train.steps), set[str]()
        chosen = {arm: _choose(config, arm, folder / arm, time_left) for arm in config.arms}
        finished = functools.partial(_is_finished, config)
        for arm, seed, directory in hosts.unfinished(folder, config.arms, config.seeds, finished):
            with time_left.network():
                _train_and_test(config, arm, chosen[arm], seed, directory, time_left, said)
    seconds = time.perf_counter() - started
    write_json(folder / "experiment.json", _description(config, command, seconds))
    return folder


def arms(config: Experiment) -> dict[str, tuple[Candidate, ...]]:
    """Every arm's candidates; an arm that lists none has itself."""
    return {arm: (Candidate(own),) if isinstance(own, Sites) else own for arm, own in config.arms.items()}


def recipe(train: TrainConfig, candidate: Candidate) -> TrainConfig:
    """`train` with the candidate's weight decay, learning rate and projector."""
    rule, schedule = train.optimizer.rule, train.optimizer.schedule
    if candidate.weight_decay is not None:
        rule = replace(rule, weight_decay=candidate.weight_decay)
    if candidate.peak_learning_rate is not None:
        schedule = replace(schedule, peak_learning_rate=candidate.peak_learning_rate)
    model = train.model if candidate.projector is None else replace(train.model, projector=candidate.projector)
    return replace(train, model=model, optimizer=replace(train.optimizer, rule=rule, schedule=schedule))


def _check(config: Experiment) -> dict[str, Any]:
    """What all hosts must have alike; ValueError for a config that cannot run."""
    all_targets = targets.on(config.train.data, config.targets)
    builders.check_prepared([config.train.data, *map(targets.data_of, all_targets.values())])
    if not config.seeds or not config.arms:
        raise ValueError(f"An experiment needs a seed and an arm, got {config.seeds} and {list(config.arms)}.")
    tried = {arm: len(own) for arm, own in config.arms.items() if not isinstance(own, Sites)}
    if len({*tried.values()}) > 1 or 0 in tried.values():
        raise ValueError(f"Every arm must have as many candidates, at least one, for a fair search, got {tried}.")
    if max(tried.values(), default=1) > 1 and (config.tuning_seed is None or not config.targets):
        raise ValueError("Candidates are compared by their probes: they need a tuning_seed and a target.")
    for candidates in arms(config).values():
        for candidate in candidates:
            train = recipe(config.train, candidate)
            prepare(train, candidate.sites)
            if start := candidate.given or train.initial_weights:
                _weights(train, candidate.sites, start, head=bool(candidate.given) or train.initial_head)
    splits = [pipeline.load(config.train.data, split) for split in targets.NAMES]
    checks.check_classes(splits)
    for name, target in all_targets.items():
        splits += targets.check(name, target)
    return hosts.description(config, splits)


def _is_finished(config: Experiment, directory: Path) -> bool:
    """Whether a seed's folder has a result of every target."""
    path = directory / "result.json"
    return path.exists() and json_files.read(path).get("targets", {}).keys() >= config.targets.keys()


def _count_networks(config: Experiment, folder: Path) -> int:
    """How many are yet to be trained, the candidates of a search among them."""
    candidates = [
        folder / arm / f"tuning{index}" / "result.json"
        for arm, own in arms(config).items()
        if len(own) > 1
        for index in range(len(own))
    ]
    seeds = [folder / arm / f"seed{seed}" for arm in config.arms for seed in config.seeds]
    return sum(not path.exists() for path in candidates) + sum(not _is_finished(config, own) for own in seeds)


def _choose(config: Experiment, arm: str, folder: Path, time_left: TimeLeft) -> Candidate:
    """The candidate whose probes are best on validation images, the mean over targets; the first one of equals."""
    candidates = arms(config)[arm]
    if len(candidates) == 1:
        return candidates[0]
    scores = []
    for index, candidate in enumerate(candidates):
        path = folder / f"tuning{index}" / "result.json"
        if not hosts.first_says(path.exists()):
            with time_left.network():
                write_json(path, _validate(config, arm, candidate, path.parent, time_left))
            hosts.first_says(True)  # that it is written
        found = json_files.read(path)["targets"]
        scores.append(float(np.mean([found[name]["validation_accuracy"] for name in config.targets])))
    best = int(np.argmax(scores))
    write_json(folder / "tuning.json", {"mean_validation_accuracy": scores, "chosen": best})
    return candidates[best]


def _validate(
    config: Experiment, arm: str, candidate: Candidate, directory: Path, time_left: TimeLeft
) -> dict[str, Any]:
    assert config.tuning_seed is not None  # `_check` has seen to it
    trained, features_of = _train(config, arm, candidate, config.tuning_seed, directory, time_left)
    on = targets.on(config.train.data, config.targets)
    found = {name: targets.validate(target, features_of) for name, target in on.items()}
    return {"validation_accuracy": trained.validation_accuracy, "step": trained.step, "targets": found}


def _train_and_test(
    config: Experiment, arm: str, candidate: Candidate, seed: int, directory: Path, time_left: TimeLeft, said: set[str]
) -> None:
    """Writes the result; `said` are the protocols that were printed, each once a run."""
    trained, features_of = _train(config, arm, candidate, seed, directory, time_left)
    result, drawn = _earlier(directory)
    result = result or {"accuracy": _accuracy(config, trained), "step": trained.step, "targets": {}}
    for name, target in targets.on(config.train.data, config.targets).items():
        if name in result["targets"]:
            continue
        found, of_target = targets.test(target, features_of)
        result["targets"][name] = found
        drawn |= {f"{name}/{what}": values for what, values in of_target.items()}
        if (protocol := f"{name} is probed by: {found['protocol']}") not in said:
            said.add(protocol)
            print(protocol)
        print(f"{arm}, seed {seed}, {name}: {found['accuracy']:.2%}", flush=True)
        for doubt in doubts.list_doubts(found):
            print(f"{arm}, seed {seed}, {name}: {doubt}", file=sys.stderr)
    if not hosts.is_first():
        return
    if drawn:
        with whole_files.replace(directory / ARRAYS) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **drawn)
        result[ARRAYS_HASH] = file_hash(directory / ARRAYS)
    write_json(directory / "result.json", result)


def _earlier(directory: Path) -> tuple[dict[str, Any], Arrays]:
    """The result that is there of other targets, and what a report draws of it.

    Raises:
      ValueError: for arrays that are not those of the result.
    """
    if not (path := directory / "result.json").exists():
        return {}, {}
    run_folder.check(directory)
    return json_files.read(path), dict(arrays.read(directory / ARRAYS)) if (directory / ARRAYS).exists() else {}


def _accuracy(config: Experiment, trained: Trained) -> float:
    """On test images; of a network without a classifier, its nearest neighbours' on validation images."""
    if config.train.joint_embedding is not None:
        return trained.validation_accuracy
    data = pipeline.load(config.train.data, "test")
    with jax.set_mesh(trained.mesh), Watchdog(config.train.hang_seconds) as watchdog:
        watchdog.compiled()
        beat = functools.partial(watchdog.beat, "a batch of test images")
        return evaluate(trained.predict, data, config.train.batch_size, trained.mesh, beat)["accuracy"]


def _train(
    config: Experiment, arm: str, candidate: Candidate, seed: int, directory: Path, time_left: TimeLeft
) -> tuple[Trained, FeaturesOf]:
    """The network, and its features of any split."""
    train = recipe(config.train, candidate)
    if candidate.given:
        trained = loop.load_given(train, candidate.sites, _weights(train, candidate.sites, candidate.given, head=True))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metrics.jsonl").touch()  # it has none
        return trained, functools.partial(extract_cached, directory / "features", trained, train)
    title = f"{arm}, {directory.name.replace('seed', 'seed ').replace('tuning', 'candidate ')}"
    start = train.initial_weights
    weights = _weights(train, candidate.sites, start, train.initial_head) if start else None
    trained = loop.train(train, candidate.sites, seed, directory, title, weights, time_left)
    return trained, functools.partial(extract_cached, directory / "features", trained, train)


def _weights(train: TrainConfig, sites: Sites, source: str, head: bool) -> initial_weights.Weights:
    return initial_weights.load(Path(source).expanduser(), prepare(train, sites).architecture, head)


def _description(config: Experiment, command: str, seconds: float) -> dict[str, Any]:
    on = targets.on(config.train.data, config.targets)
    return {
        "name": config.name,
        "title": config.title,
        "notes": list(config.notes),
        "paper": config.paper,
        "arms": list(config.arms),
        "seeds": list(config.seeds),
        "label": config.train.data.label,
        "targets": {name: _about(target) for name, target in on.items()},
        **provenance(config, command, seconds),
    }


def _about(target: Target) -> dict[str, Any]:
    data = targets.data_of(target)
    names = pipeline.load(data, "test", target.probe.label).class_names
    return {"label": target.probe.label, "data": data.name, "class_names": names}
