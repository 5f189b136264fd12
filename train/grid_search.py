"""A grid from beginning to end: every point with every search seed, the best point of each arm, its test accuracy."""

import itertools
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import jax

from train import grid, hosts, resume
from train import mesh as meshes
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.data import pipeline
from train.grid import Grid, Setting
from train.run_folder import as_json, provenance, software, write_json
from vcreg_jax import VCReg

BASELINE, VCREG = ARMS = ("baseline", "VCReg")

Result = dict[str, Any]  # a setting's fields, and accuracy, loss and skipped updates


def run(config: Grid, command: str) -> Path:
    """Runs what is not yet done of `config` and returns the run folder, complete.

    Everything lies under `runs_directory/name/`: `grid.json`, and in `search/program<i>` and `final/program<i>`
    `result.json` and `checkpoints/`. An interrupted run goes on where its last checkpoint is.

    Raises:
      ValueError: before any work, for a config that cannot run or that differs from the one in the folder.
    """
    started = time.perf_counter()
    folder = Path(config.runs_directory) / config.name
    with hosts.claimed(folder, config, lambda: checked(config)):
        searched = _results(config, config.search, with_seeds(points(config), config.search_seeds), folder / "search")
        best = [chosen(searched, arm) for arm in ARMS]
        _results(config, config.train, with_seeds(best, config.seeds), folder / "final")
    seconds = time.perf_counter() - started
    write_json(folder / "grid.json", {"name": config.name, **provenance(config, command, seconds)})
    return folder


def points(config: Grid) -> list[Setting]:
    """The grid: without a regularizer at every learning rate, then at every learning rate, alpha and beta; seed 0."""
    none = [Setting(rate, 0.0, 0.0, 0) for rate in config.learning_rates]
    weights = itertools.product(config.learning_rates, config.alphas, config.betas)
    return none + [Setting(rate, alpha, beta, 0) for rate, alpha, beta in weights]


def with_seeds(points: Sequence[Setting], seeds: Sequence[int]) -> list[Setting]:
    """Every point with every seed, all points of a seed before the next seed."""
    return [Setting(own.learning_rate, own.alpha, own.beta, seed) for seed in seeds for own in points]


def arm_of(result: Result) -> str:
    """Which arm a setting belongs to."""
    return VCREG if result["alpha"] or result["beta"] else BASELINE


def by_point(results: Sequence[Result]) -> dict[tuple[float, float, float], list[Result]]:
    """The results of each (learning rate, alpha, beta), in the order of the grid."""
    found: dict[tuple[float, float, float], list[Result]] = {}
    for own in results:
        found.setdefault((own["learning_rate"], own["alpha"], own["beta"]), []).append(own)
    return found


def chosen(results: Sequence[Result], arm: str) -> Setting:
    """The arm's point whose accuracy is best on average over its seeds; the first one of equals."""
    means = {
        point: statistics.mean(own["accuracy"] for own in found)
        for point, found in by_point(results).items()
        if arm_of(found[0]) == arm
    }
    return Setting(*max(means, key=lambda point: means[point]), seed=0)


def checked(config: Grid) -> dict[str, Any]:
    """What a run must have alike; ValueError for a config that cannot run."""
    if jax.process_count() > 1:
        raise ValueError(f"A grid runs on one host, whose devices share the settings, got {jax.process_count()} hosts.")
    needed = ("learning_rates", "alphas", "betas", "search_seeds", "seeds")
    if missing := [name for name in needed if not getattr(config, name)]:
        raise ValueError(f"A grid needs at least one value of {', '.join(needed)}; got none of {', '.join(missing)}.")
    if config.at_once < 1 or (config.vmapped is not None and config.vmapped < 1):
        raise ValueError(f"Needed: at_once >= 1 and vmapped >= 1, got {config.at_once} and {config.vmapped}.")
    if not any(isinstance(reg, VCReg) for reg in vars(config.sites).values()):
        raise ValueError(f"A grid of weights needs a VCReg among its sites, got {config.sites}.")
    splits = []
    for train in (config.search, config.train):
        splits += [_checked(config, train), *(pipeline.load(train.data, split) for split in ("validation", "test"))]
    return hosts.description(config, splits)


def _checked(config: Grid, train: TrainConfig) -> pipeline.Split:
    if train.steps % config.steps_per_call:
        raise ValueError(f"steps_per_call must divide the {train.steps} steps, got {config.steps_per_call}.")
    if not train.data.in_memory or train.joint_embedding is not None:
        raise ValueError("A grid trains classifiers on images in memory: it needs data.in_memory, no joint_embedding.")
    data = pipeline.load(train.data, "train")
    if not 1 <= train.batch_size <= len(data):
        raise ValueError(f"batch_size must lie in 1..{len(data)}, the images to train on, got {train.batch_size}.")
    _program(config, train, data)
    return data


def _program(config: Grid, train: TrainConfig, data: pipeline.Split) -> grid.Program:
    plain = grid.without_regularizers(train, data)
    return grid.make_program(train, plain, config.sites, meshes.make_mesh(train.mesh), config.vmapped)


def _results(config: Grid, train: TrainConfig, settings: Sequence[Setting], folder: Path) -> list[Result]:
    """What became of every setting: of the search on validation images, of the final runs on test images."""
    held_out = pipeline.load(train.data, "validation" if folder.name == "search" else "test")
    devices = meshes.make_mesh(train.mesh).size
    programs = math.ceil(len(settings) / config.at_once)
    size = math.ceil(len(settings) / programs / devices) * devices
    found = []
    for index, start in enumerate(range(0, len(settings), size)):
        path, own = folder / f"program{index}" / "result.json", list(settings[start : start + size])
        if not path.exists():
            # Full to the last one, so that all have the shapes for which the first one was compiled.
            full = own + [own[-1]] * (size - len(own))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _trained(config, train, full, held_out, path.parent)[: len(own)])
        found += json.loads(path.read_text())
        if [{name: result[name] for name in asdict(own[0])} for result in found[start:]] != [asdict(s) for s in own]:
            raise ValueError(f"{path} is of other settings. Delete {folder} and run the config again.")
    return found


def _trained(
    config: Grid, train: TrainConfig, settings: Sequence[Setting], held_out: pipeline.Split, directory: Path
) -> list[Result]:
    data, mesh = pipeline.load(train.data, "train"), meshes.make_mesh(train.mesh)
    program, values = _program(config, train, data), grid.as_arrays(settings)
    images, metrics = grid.on_devices(data, mesh), {}
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
            draws = grid.drawn(data, train.batch_size, settings, range(step, after))
            states, metrics = program.train(states, values, draws, images)
            losses = [f"{loss:.3f}" for loss in jax.device_get(metrics["loss"]).mean(axis=1)]
            print(
                f"{directory.parent.name}/{directory.name}, step {after} of {train.steps}: {' '.join(losses)}",
                flush=True,
            )
            if after == train.steps or after // train.save_every > step // train.save_every:
                checkpoints.save(after, states, {}, wait=after == train.steps)
    batches = grid.evaluation_batches(held_out, train.batch_size)
    sums = cast(Any, jax.device_get(program.evaluate(states, values, batches)))
    results = [asdict(own) for own in settings]
    for index, own in enumerate(results):
        of_each = {name: float(sums[name][index] / sums["count"][index]) for name in ("accuracy", "loss")}
        own |= of_each | {"skipped": int(jax.device_get(states["guard"]["skipped"])[index])}
    return results
