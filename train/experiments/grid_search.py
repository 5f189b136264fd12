"""A grid from beginning to end: every point with every search seed, the best point of each arm, its test accuracy."""

import functools
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from train.config import Target, TrainConfig
from train.data import pipeline
from train.experiments import doubts, grid, targets
from train.experiments.grid import BASELINE, Grid, Setting
from train.experiments.targets import FeaturesOf
from train.files import json_files
from train.run import hosts, resume
from train.run.checkpoints import Checkpoints
from train.run.folder import as_json, provenance, software, write_json
from train.trainer import mesh as meshes
from train.trainer.features import extract
from train.trainer.model import structure
from train.trainer.step import Normalize, State, make_predict, weights_to_use
from vcreg_jax import Sites, identity

SEARCH, FINAL = "search", "final"
LOSSES = "losses.jsonl"  # a line for every call of the program: the step, and each setting's mean training loss

Result = dict[str, Any]  # a setting's fields, its accuracy, loss, score, skipped updates, and what each target found


def run(config: Grid, command: str) -> Path:
    """Runs what is not yet done of `config` and returns the run folder, complete.

    Everything lies under `runs_directory/name/`: `grid.json`, and in `search/program<i>` and `final/program<i>`
    `result.json` and `checkpoints/`. An interrupted run goes on where its last checkpoint is.

    Raises:
      ValueError: before any work, for a config that cannot run or that differs from the one in the folder.
    """
    started = time.perf_counter()
    folder = Path(config.runs_directory) / config.name
    with hosts.claim_on_all(folder, config, lambda: check(config)):
        searched = _results(config, config.search, with_seeds(points(config), config.search_seeds), folder / SEARCH)
        best = [choose(searched, arm) for arm in (BASELINE, *config.arms)]
        _results(config, config.train, with_seeds(best, config.seeds), folder / FINAL)
    seconds = time.perf_counter() - started
    write_json(folder / "grid.json", {"name": config.name, **provenance(config, command, seconds)})
    return folder


def points(config: Grid) -> list[Setting]:
    """The grid: the baseline at each of its learning rates, then each arm at every rate, alpha and beta; seed 0."""
    none = [Setting(rate, 0.0, 0.0, 0) for rate in config.baseline_learning_rates or config.learning_rates]
    return none + [
        Setting(rate, alpha, beta, 0, arm)
        for arm, own in config.arms.items()
        for rate, alpha, beta in itertools.product(config.learning_rates, own.alphas, own.betas)
    ]


def with_seeds(points: Sequence[Setting], seeds: Sequence[int]) -> list[Setting]:
    """Every point with every seed, all points of a seed before the next seed."""
    return [replace(own, seed=seed) for seed in seeds for own in points]


def by_point(results: Sequence[Result], arm: str) -> dict[tuple[float, float, float], list[Result]]:
    """The arm's results at each (learning rate, alpha, beta), in the order of the grid."""
    grouped: dict[tuple[float, float, float], list[Result]] = {}
    for own in results:
        if own["arm"] == arm:
            grouped.setdefault((own["learning_rate"], own["alpha"], own["beta"]), []).append(own)
    return grouped


def choose(results: Sequence[Result], arm: str) -> Setting:
    """The arm's point whose score is best on average over its seeds; the first one of equals."""
    means = {
        point: statistics.mean(own["score"] for own in at_point) for point, at_point in by_point(results, arm).items()
    }
    return Setting(*max(means, key=lambda point: means[point]), seed=0, arm=arm)


def check(config: Grid) -> dict[str, Any]:
    """What a run must have alike; ValueError for a config that cannot run."""
    if jax.process_count() > 1:
        raise ValueError(f"A grid runs on one host, whose devices share the settings, got {jax.process_count()} hosts.")
    if missing := [name for name in ("arms", "learning_rates", "search_seeds", "seeds") if not getattr(config, name)]:
        raise ValueError(f"A grid needs at least one of each of its {', '.join(missing)}; got none.")
    if config.at_once < 1 or (config.vmapped is not None and config.vmapped < 1):
        raise ValueError(f"Needed: at_once >= 1 and vmapped >= 1, got {config.at_once} and {config.vmapped}.")
    for arm, own in config.arms.items():
        if arm == next(iter(config.arms)) and own.sites.map(lambda _, reg: identity) != Sites():
            raise ValueError(f"The baseline is trained with the first arm, and {arm!r} removes means: put it later.")
        if arm == BASELINE or not own.alphas or not own.betas:
            raise ValueError(f"An arm needs a name other than {BASELINE!r}, an alpha and a beta, got {arm!r}: {own}.")
        if not any(hasattr(reg, "scaled") for reg in own.sites.regularizers.values()):
            raise ValueError(f"A grid of strengths needs a regularizer among the sites of {arm!r}, got {own.sites}.")
    splits = [split for name, target in _targets(config).items() for split in targets.check(name, target)]
    for train in (config.search, config.train):
        splits += [
            _check_training(config, train),
            *(pipeline.load(train.data, split) for split in ("validation", "test")),
        ]
    return hosts.description(config, splits)


def _check_training(config: Grid, train: TrainConfig) -> pipeline.Split:
    if train.steps % config.steps_per_call:
        raise ValueError(f"steps_per_call must divide the {train.steps} steps, got {config.steps_per_call}.")
    if not train.data.in_memory or train.joint_embedding is not None:
        raise ValueError("A grid trains classifiers on images in memory: it needs data.in_memory, no joint_embedding.")
    data = pipeline.load(train.data, "train")
    if not 1 <= train.batch_size <= len(data):
        raise ValueError(f"batch_size must lie in 1..{len(data)}, the images to train on, got {train.batch_size}.")
    for own in config.arms.values():
        _program(config, train, own.sites, data)
    return data


def _program(config: Grid, train: TrainConfig, sites: Sites, data: pipeline.Split) -> grid.Program:
    plain = grid.without_regularizers(train, data)
    return grid.make_program(train, plain, sites, meshes.make_mesh(train.mesh), config.vmapped)


def _results(config: Grid, train: TrainConfig, settings: Sequence[Setting], folder: Path) -> list[Result]:
    """What became of every setting: of the search on validation images, of the final runs on test images."""
    found = []
    for index, (sites, own, size) in enumerate(_programs(config, train, settings)):
        path = folder / f"program{index}" / "result.json"
        if not path.exists():
            # Full to the last one, so that all have the shapes for which the first one was compiled.
            full = own + [own[-1]] * (size - len(own))
            path.parent.mkdir(parents=True, exist_ok=True)
            states = _train(config, train, sites, full, path.parent)
            results = _evaluate(config, train, sites, full, states, folder.name, len(own))
            last = _last_losses(path.parent / LOSSES, train.steps)
            write_json(path, [one | {"training_loss": loss} for one, loss in zip(results, last, strict=False)])
        here = json_files.read(path)
        if [{name: result.get(name) for name in asdict(own[0])} for result in here] != [asdict(s) for s in own]:
            raise ValueError(f"{path} is of other settings. Delete {folder} and run the config again.")
        found += here
    return found


def _last_losses(path: Path, steps: int) -> list[float]:
    *_, last = json_files.read_lines(path.read_text(), path)
    if last["step"] != steps:
        raise ValueError(f"{path} ends at step {last['step']} of {steps}. Delete its folder and run the config again.")
    return last["losses"]


def _programs(config: Grid, train: TrainConfig, settings: Sequence[Setting]) -> list[tuple[Sites, list[Setting], int]]:
    """The settings by program, each with its sites and how many settings it is compiled for.

    The baseline's weights are 0 at any sites, so it is trained with the first arm.
    """
    devices, first = meshes.make_mesh(train.mesh).size, next(iter(config.arms))
    programs = []
    for arm, strengths in config.arms.items():
        own = [setting for setting in settings if setting.arm == arm or (arm == first and setting.arm == BASELINE)]
        count = math.ceil(len(own) / config.at_once)
        size = math.ceil(len(own) / count / devices) * devices
        programs += [(strengths.sites, own[start : start + size], size) for start in range(0, len(own), size)]
    return programs


def _train(config: Grid, train: TrainConfig, sites: Sites, settings: Sequence[Setting], directory: Path) -> State:
    """The settings' states after the last step."""
    data, mesh = pipeline.load(train.data, "train"), meshes.make_mesh(train.mesh)
    program, values = _program(config, train, sites, data), grid.as_arrays(settings)
    images = grid.on_devices(data, mesh)
    about = {
        "train": as_json(train),
        "settings": [asdict(own) for own in settings],
        "mesh": dict(mesh.shape),
        "data": data.selection.fingerprint(),
        **software(),
    }
    with Checkpoints(directory / "checkpoints", train.checkpoints, about) as checkpoints:
        states, start = program.initial(values), 0
        if restored := checkpoints.restore_newest(like=states):
            start, states = restored.step, restored.state
            for warning in (*restored.warnings, *resume.check(start, restored.run, about)):
                print(warning)
        for step in range(start, train.steps, config.steps_per_call):
            after = step + config.steps_per_call
            draws = grid.draw(data, train.batch_size, settings, range(step, after))
            states, metrics = program.train(states, values, draws, images)
            losses = jax.device_get(metrics["loss"]).mean(axis=1).tolist()
            json_files.append(directory / LOSSES, {"step": after, "losses": losses})
            shown = " ".join(f"{loss:.3f}" for loss in losses)
            print(f"{directory.parent.name}/{directory.name}, step {after} of {train.steps}: {shown}", flush=True)
            if after == train.steps or after // train.save_every > step // train.save_every:
                checkpoints.save(after, states, {}, wait=after == train.steps)
    return states


def _evaluate(
    config: Grid, train: TrainConfig, sites: Sites, settings: Sequence[Setting], states: State, part: str, count: int
) -> list[Result]:
    """Of the search on validation images, of the final runs on test images: what the networks of the first `count`
    settings and their probes reach."""
    data, mesh = pipeline.load(train.data, "train"), meshes.make_mesh(train.mesh)
    held_out = pipeline.load(train.data, "validation" if part == SEARCH else "test")
    program, values = _program(config, train, sites, data), grid.as_arrays(settings)
    batches = grid.evaluation_batches(held_out, train.batch_size)
    sums = cast(Any, jax.device_get(program.evaluate(states, values, batches)))
    skipped = jax.device_get(states["guard"]["skipped"])
    plain = grid.without_regularizers(train, data)
    predict = make_predict(
        structure(replace(plain, sites=sites.map(lambda _, reg: identity)))[0],
        Normalize(train.data.mean, train.data.std),
    )
    networks = jax.device_get(weights_to_use(states))
    results = [asdict(own) for own in settings[:count]]
    for index, own in enumerate(results):
        own |= {name: float(sums[name][index] / sums["count"][index]) for name in ("accuracy", "loss")}
        weights = jax.tree.map(lambda leaf, k=index: leaf[k], networks)
        with jax.set_mesh(mesh):
            features_of = _features(functools.partial(predict, *weights), train.batch_size, mesh)
            found = {name: _probe(part, target, features_of) for name, target in _targets(config).items()}
        scores = [of["validation_accuracy"] for of in found.values()]
        own |= {"skipped": int(skipped[index]), "targets": found}
        own["score"] = statistics.mean(scores) if scores else own["accuracy"]
        for name, of_target in found.items() if part == FINAL else ():
            for doubt in doubts.list_doubts(of_target):
                print(f"{own['arm']}, seed {own['seed']}, {name}: {doubt}", file=sys.stderr)
        if found:
            print(f"{part}: {own['arm']} {own['alpha']:g} {own['beta']:g}, seed {own['seed']}: {own['score']:.2%}")
    return results


def _targets(config: Grid) -> dict[str, Target]:
    return targets.on(config.train.data, config.targets)


def _probe(part: str, target: Target, features_of: FeaturesOf) -> dict[str, Any]:
    return targets.validate(target, features_of) if part == SEARCH else targets.test(target, features_of)[0]


def _features(predict: Any, batch_size: int, mesh: Any) -> FeaturesOf:
    """Features and labels of any split, kept for the next probe that asks for the same."""
    kept: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def features_of(split: pipeline.Split) -> tuple[np.ndarray, np.ndarray]:
        chosen = split.selection
        same = split.config, chosen.name, chosen.indices.tobytes(), chosen.targets.tobytes()
        if same not in kept:
            kept[same] = extract(predict, split, batch_size, mesh)
        return kept[same]

    return features_of
