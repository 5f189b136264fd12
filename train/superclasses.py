"""CIFAR-100's superclasses in a given time, on one GPU: training on 20 of them, then a linear probe of the 100 classes.

The paper's Table 5 in small. Six settings train as one program (`train.grid`): without a regularizer, and with VCReg in
each of the paper's two scales. The best point of each arm by the probe on validation images is trained anew with three
seeds. As many epochs are trained as fit, by the time of one on a GPU that does nothing else.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train import benchmark, grid, probe
from train.augment import AugmentConfig, Moves
from train.augment.shift import drawn_moves
from train.benchmark import Settings
from train.config import AdamW, Cosine, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from train.data import order
from train.grid import Setting
from train.model import structure
from train.step import Normalize, make_predict
from train.timing import Deadline
from vcreg_jax import Sites, VCReg
from vcreg_jax.metrics import effective_rank

NONE, EQUATION_4, ALGORITHM_1 = "none", "equation_4", "algorithm_1"  # the arms; the last two are VCReg's scales
RATE, TUNING_SEED = 0.016, 100
# With a beta of 10 Eq. 4 lost 20 points on an H200, and Algorithm 1's beta is hundreds of times as strong.
POINTS = {
    EQUATION_4: [
        *[(RATE, 0.0, 0.0), (RATE / 2, 0.0, 0.0)],
        *[(RATE, 0.64, 0.08), (RATE, 1.28, 0.16), (RATE, 0.64, 1.0), (RATE / 2, 0.64, 0.08)],
    ],
    ALGORITHM_1: [
        *((RATE, 0.64, beta) for beta in (0.08, 0.01, 1e-3, 1e-4)),
        *[(RATE, 1.28, 1e-4), (RATE / 2, 0.64, 1e-4)],
    ],
}  # learning rate, alpha and beta of each scale's program
EPOCH_SECONDS = 0.8  # of a program, until one is timed
STRENGTHS = np.geomspace(0.1, 1e4, 11)
BATCH = 1000  # images evaluated at once

Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is trained, for the most of `epochs` that fit."""

    model: ModelConfig
    batch_size: int
    points: dict[str, list[tuple[float, float, float]]]
    seeds: int  # of each arm in the end
    epochs: tuple[int, ...]


FULL = Plan(ModelConfig("convnext_atto", "bfloat16"), 4096, POINTS, 3, (200, 100, 50, 20, 10, 5))  # the paper's: 200
TRIAL = Plan(ModelConfig("convnext_digits"), 150, {EQUATION_4: POINTS[EQUATION_4][:3:2]}, 1, (2,))


@dataclass(frozen=True)
class InMemory:
    """A split as `train.grid` asks for it, with the draws of `train.data.pipeline`; superclasses are its labels."""

    memory: tuple[np.ndarray, np.ndarray]
    classes: np.ndarray
    config: DataConfig

    @property
    def num_classes(self) -> int:
        """Of the superclasses."""
        return int(self.memory[1].max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return cast(Any, self.memory[0].shape[1:])

    def drawn(self, batch_size: int, seed: int, step: int) -> tuple[np.ndarray, Moves]:
        """Which images are the batch of a step, and how each is moved."""
        augment = self.config.augment
        positions = order.of_step(len(self.classes), batch_size, seed, step, batch_size, 1)
        return positions, drawn_moves(np.random.default_rng([seed, step]), batch_size, augment.max_shift, augment.flip)


def splits_of(images: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> dict[str, InMemory]:
    """The last sixth of the images tests, as CIFAR-100's 10,000 do; a tenth of the others chooses."""
    last = len(images) * 5 // 6
    cuts = {"train": slice(last * 9 // 10), "val": slice(last * 9 // 10, last), "test": slice(last, None)}
    bytes_of = images[cuts["train"]].reshape(-1, images.shape[-1])
    mean_, std = (tuple((of(axis=0) / 255).tolist()) for of in (bytes_of.mean, bytes_of.std))
    config = DataConfig("in memory", "coarse", mean_, std, AugmentConfig(max_shift=4, flip=0.5), in_memory=True)
    return {name: InMemory((images[cut], coarse[cut]), fine[cut], config) for name, cut in cuts.items()}


class Trainer:
    """Trains settings of one scale for a number of epochs, as one program, and probes them."""

    def __init__(self, splits: dict[str, InMemory], plan: Plan, scale: str, epochs: int, mesh: Mesh):
        self.splits, self.epochs, self.batch_size = splits, epochs, plan.batch_size
        self.train_split = train = cast(Any, splits["train"])
        self.per_epoch = math.ceil(len(train.classes) / plan.batch_size)
        schedule = Cosine(RATE, warmup_steps=max(min(5, epochs // 10), 1) * self.per_epoch)
        optimizer = OptimizerConfig(AdamW(weight_decay=0.05), schedule)
        config = TrainConfig(train.config, plan.model, optimizer, epochs * self.per_epoch, plan.batch_size)
        plain = grid.without_regularizers(config, self.train_split)
        sites = Sites(block=VCReg(scale=cast(Any, scale)))
        self.program = grid.make_program(config, plain, sites, mesh, 1 if jax.default_backend() == "cpu" else None)
        self.images = grid.on_devices(self.train_split, mesh)
        self.predict = make_predict(structure(plain)[0], Normalize(train.config.mean, train.config.std))

    def train(self, settings: Sequence[Setting], epochs: int) -> tuple[Any, list[list[float]], list[float]]:
        """The states after that many epochs, and by epoch the settings' losses and the seconds."""
        values, losses, seconds = grid.as_arrays(settings), [], []
        states = self.program.initial(values)
        for epoch in range(epochs):
            start = time.perf_counter()
            steps = range(epoch * self.per_epoch, (epoch + 1) * self.per_epoch)
            draws = grid.drawn(self.train_split, self.batch_size, settings, steps)
            states, metrics = self.program.train(states, values, draws, self.images)
            losses.append(np.asarray(metrics["loss"]).mean(axis=1).tolist())  # waits
            seconds.append(time.perf_counter() - start)
        return states, losses, seconds

    def probed(self, states: Any, index: int) -> Result:
        """One network's accuracy on superclasses, and on classes by the probe in `configs/table5_small.py`."""
        own = jax.tree.map(lambda leaf: leaf[index], (states["params"], states["batch_stats"]))
        found, rows = {}, {}
        for name, split in self.splits.items():
            images, labels = split.memory
            logits, features = self._predicted(own, images)
            found[f"superclass_{name}_accuracy"] = float((logits.argmax(axis=1) == labels).mean())
            rows[name] = probe.Split(features, split.classes)
        how = {"standardize": True, "tolerance": 1e-3, "protocol": "in small"}
        num_classes = int(self.train_split.classes.max()) + 1
        probed = probe.select_and_test(**rows, num_classes=num_classes, l2=STRENGTHS, **how)
        return found | {
            "probe_validation_accuracy": float(np.max(probed.validation_accuracy)),
            "probe_test_accuracy": probed.test_accuracy,
            "probe_l2": probed.l2,
            "probe_converged": probed.converged,
            "effective_rank": float(effective_rank(jnp.asarray(rows["test"].features))),
        }

    def _predicted(self, weights: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features in float32; the last batch is filled up, so that one program serves all."""
        params, batch_stats = weights
        starts = range(0, len(images), BATCH)
        batches = (images[np.minimum(np.arange(start, start + BATCH), len(images) - 1)] for start in starts)
        parts = zip(*(self.predict(params, batch_stats, jnp.asarray(batch)) for batch in batches), strict=True)
        logits, features = (np.concatenate([np.asarray(p, np.float32) for p in part])[: len(images)] for part in parts)
        return logits, features


def measure(path: Path | None, _settings: Settings, _found: Result, save: Callable[..., None], end: Deadline) -> None:
    """The candidates' program of each scale, then that of the chosen ones; saved after each. No path: a trial."""
    plan, splits = (TRIAL, _random_images()) if path is None else (FULL, splits_of(**np.load(path)))
    trainers, seconds = _ready(splits, plan, end)
    runs: list[Result] = []
    result: Result = {"points": plan.points, "images": str(path), "program_seconds": seconds, "runs": runs}
    result["not_run"] = []
    for final in (False, True):
        for scale, trainer in trainers.items():
            if end.left < seconds:
                result["not_run"].append(f"{scale}, {'final' if final else 'candidates'}: {end.left:.0f} s were left")
            else:
                runs += _runs(trainer, finals(runs, plan, scale) if final else candidates(plan, scale), scale, final)
            save(result | {"summary": summary(runs)})
    save(result | {"summary": summary(runs), "complete": not result["not_run"]})


def candidates(plan: Plan, scale: str) -> list[Setting]:
    """What is trained to choose from."""
    return [Setting(*point, TUNING_SEED) for point in plan.points[scale]]


def _ready(splits: dict[str, InMemory], plan: Plan, end: Deadline) -> tuple[dict[str, Trainer], float]:
    """A trainer of each scale for as many epochs as fit, and the seconds of one of their programs, probes too."""
    mesh = benchmark.one_device_mesh("cpu" if plan is TRIAL else "gpu")
    # With as many seeds as the final runs have, since the host draws for each.
    settings = [replace(own, seed=seed) for seed, own in enumerate(candidates(plan, EQUATION_4))]
    programs = 2 * len(plan.points)

    def trainers(epochs: int) -> dict[str, Trainer]:
        return {scale: Trainer(splits, plan, scale, epochs, mesh) for scale in plan.points}

    def most(epoch: float, probes: float) -> int:
        fitting = (epochs for epochs in plan.epochs if programs * (1.05 * epochs * epoch + probes) < end.left)
        return next(fitting, plan.epochs[-1])

    epochs = most(EPOCH_SECONDS, 0.0)
    found = trainers(epochs)
    states, _, seconds = found[EQUATION_4].train(settings, 2)  # the first epoch compiles
    found[EQUATION_4].probed(states, 0)
    start = time.perf_counter()
    found[EQUATION_4].probed(states, 1)
    probes = len(settings) * (time.perf_counter() - start)
    if (fitting := most(seconds[-1], probes)) != epochs:
        found = trainers(fitting)  # the schedule's length is part of the program
    print(f"an epoch takes {seconds[-1]:.2f} s, probes {probes:.0f} s: {fitting} epochs", flush=True)
    return found, fitting * seconds[-1] + probes


def _runs(trainer: Trainer, settings: Sequence[Setting], scale: str, final: bool) -> list[Result]:
    states, losses, seconds = trainer.train(settings, trainer.epochs)
    skipped = np.asarray(states["guard"]["skipped"]).tolist()
    found = []
    for index, own in enumerate(settings):
        run = {**asdict(own), "arm": scale if own.alpha else NONE, "final": final, "epochs": trainer.epochs}
        run |= trainer.probed(states, index) | {"skipped": skipped[index], "epoch_seconds": float(np.median(seconds))}
        found.append(run | {"losses": [of_epoch[index] for of_epoch in losses]})
        print({name: value for name, value in found[-1].items() if name != "losses"}, flush=True)
    return found


def finals(runs: Sequence[Result], plan: Plan, scale: str) -> list[Setting]:
    """The scale's chosen point, and the baseline's with seeds that no other scale's program has."""
    first = plan.seeds * list(plan.points).index(scale)
    seeds = {NONE: range(first, first + plan.seeds), scale: range(plan.seeds)}
    return [Setting(*chosen(runs, arm), seed) for arm, own in seeds.items() for seed in own]


def chosen(runs: Sequence[Result], arm: str) -> tuple[float, float, float]:
    """The arm's candidate that the probe finds best on validation images; the first of equals."""
    tried = [run for run in runs if run["arm"] == arm and not run["final"]]
    best = max(tried, key=lambda run: run["probe_validation_accuracy"])
    return best["learning_rate"], best["alpha"], best["beta"]


def summary(runs: Sequence[Result]) -> dict[str, dict[str, list[float | None]]]:
    """Of each arm's final runs mean, standard deviation and n; accuracies in %."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs if run["final"]):
        own = [run for run in runs if run["final"] and run["arm"] == arm]
        for name, unit in (("superclass_test_accuracy", 100), ("probe_test_accuracy", 100), ("effective_rank", 1)):
            values = [unit * run[name] for run in own]
            spread = stdev(values) if len(values) > 1 else None
            found.setdefault(arm, {})[name] = [mean(values), spread, len(values)]
    return found


def text(found: Result) -> str:
    """One line for each arm and number, and what was not run."""
    lines = [
        f"- {arm}, {name}: {of[0]:.2f} ± {of[1] or math.nan:.2f} (n = {of[2]}, {found['runs'][0]['epochs']} epochs)"
        for arm, numbers in found["summary"].items()
        for name, of in numbers.items()
    ]
    return "\n".join(lines + [f"- not run: {what}" for what in found["not_run"]])


def _random_images() -> dict[str, InMemory]:
    """Small images of ten classes, each of its own brightness."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 10, 360).astype(np.int32)
    images = rng.integers(0, 60, (360, 8, 8, 3)) + 19 * fine[:, None, None, None]
    return splits_of(images.astype(np.uint8), fine, fine // 5)
