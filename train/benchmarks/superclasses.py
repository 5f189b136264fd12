"""CIFAR-100's superclasses in a given time, on one GPU: training on 20 of them, then probes of the 100 classes.

A ResNet-20 of twice the width learns the superclasses with crops and flips. It can tell them apart, unlike a ConvNeXt
whose stem takes 4x4 pixels at a time. Three settings train as one program (`train.experiments.grid`).

First the network without a regularizer is trained at three learning rates; the best one is that of all arms. Then each
arm has three strengths. The best setting of each by the probes on validation images is trained anew with three seeds,
and tested. As many epochs are trained as fit, by the time of one on a GPU that does nothing else.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from train.augment import AugmentConfig, Moves
from train.augment.shift import draw_moves
from train.benchmarks import programs as benchmark
from train.benchmarks.programs import Settings
from train.benchmarks.timing import Deadline
from train.config import AdamW, Cosine, DataConfig, GradientProbeConfig, ModelConfig, OptimizerConfig, TrainConfig
from train.data import order
from train.experiments import gradient_probe, grid
from train.experiments.grid import Setting
from train.trainer.model import structure
from train.trainer.step import Normalize, make_predict
from vcreg_jax import Sites, VCReg
from vcreg_jax.metrics import effective_rank
from vcreg_jax.probes import linear, quick

NONE = "none"  # the arm without a regularizer
TUNING_SEED = 100
RATES = (2e-3, 4e-3, 8e-3)
STRENGTHS = np.geomspace(0.1, 1e4, 11)  # of the L-BFGS probe
ADAMW = GradientProbeConfig("label", AdamW(weight_decay=0.05), (0.016,), epochs=100, protocol="VCReg, Appendix C.2")
BATCH = 1000  # images evaluated at once
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of CIFAR-100's 50,000 training images
EPOCH_SECONDS, PROBE_SECONDS, COMPILE_SECONDS = 1.5, 3.5, 75.0  # as on an H200, until they are timed

Result = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """VCReg at these sites, at each (alpha, beta)."""

    sites: Sites
    points: tuple[tuple[float, float], ...]


# Eq. 4's (1.28, 10) lost 20 points with a ConvNeXt, and Algorithm 1's beta is hundreds to 500,000 times as strong.
ARMS = {
    "equation_4": Arm(Sites(block=VCReg(scale="equation_4")), ((0.64, 0.08), (0.64, 1.0), (0.64, 10.0))),
    "algorithm_1": Arm(Sites(block=VCReg(scale="algorithm_1")), ((0.64, 1e-5), (0.64, 1e-4), (0.64, 0.01))),
}


@dataclass(frozen=True)
class Plan:
    """What is trained, for the most of `epochs` that fit; as many rates as an arm has points, and as many seeds."""

    model: ModelConfig
    batch_size: int
    rates: tuple[float, ...]  # of the network without a regularizer
    arms: dict[str, Arm]
    epochs: tuple[int, ...]


FULL = Plan(ModelConfig("resnet20_x2", "bfloat16"), 512, RATES, ARMS, (100, 80, 60, 50, 40, 30, 25, 20, 15, 10, 5))
TRIAL = Plan(
    ModelConfig("convnext_digits"),
    150,
    RATES[:1],
    {"equation_4": replace(ARMS["equation_4"], points=((0.64, 1.0),))},
    (2,),
)


@dataclass(frozen=True)
class InMemory:
    """A split as grids ask for it, with the draws of `train.data.pipeline`; superclasses are its labels."""

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
        return positions, draw_moves(np.random.default_rng([seed, step]), batch_size, augment.max_shift, augment.flip)


def splits_of(images: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> dict[str, InMemory]:
    """The last sixth of the images tests, as CIFAR-100's 10,000 do; a tenth of the others chooses."""
    last = len(images) * 5 // 6
    cuts = {"train": slice(last * 9 // 10), "val": slice(last * 9 // 10, last), "test": slice(last, None)}
    config = DataConfig("in memory", "coarse", MEAN, STD, AugmentConfig(max_shift=4, flip=0.5), in_memory=True)
    return {name: InMemory((images[cut], coarse[cut]), fine[cut], config) for name, cut in cuts.items()}


class Trainer:
    """Trains settings of one arm for a number of epochs, as one program, and probes them."""

    def __init__(self, splits: dict[str, InMemory], plan: Plan, sites: Sites, epochs: int, mesh: Mesh):
        self.splits, self.epochs, self.plan = splits, epochs, plan
        self.train_split = train = cast(Any, splits["train"])
        self.per_epoch = math.ceil(len(train.classes) / plan.batch_size)
        schedule = Cosine(1.0, warmup_steps=max(min(5, epochs // 10), 1) * self.per_epoch)
        optimizer = OptimizerConfig(AdamW(weight_decay=0.05), schedule)
        config = TrainConfig(train.config, plan.model, optimizer, epochs * self.per_epoch, plan.batch_size)
        plain = grid.without_regularizers(config, self.train_split)
        # One network after the other: convolutions with weights of their own would be grouped ones, which are slow.
        self.program = grid.make_program(config, plain, sites, mesh, 1)
        self.images = grid.on_devices(self.train_split, mesh)
        self.predict = make_predict(structure(plain)[0], Normalize(train.config.mean, train.config.std))

    def train(self, settings: Sequence[Setting], epochs: int) -> tuple[Any, list[list[float]], list[float]]:
        """The states after that many epochs, and by epoch the settings' losses and the seconds."""
        values, losses, seconds = grid.as_arrays(settings), [], []
        states = self.program.initial(values)
        for epoch in range(epochs):
            start = time.perf_counter()
            steps = range(epoch * self.per_epoch, (epoch + 1) * self.per_epoch)
            draws = grid.draw(self.train_split, self.plan.batch_size, settings, steps)
            states, metrics = self.program.train(states, values, draws, self.images)
            losses.append(np.asarray(metrics["loss"]).mean(axis=1).tolist())  # waits
            seconds.append(time.perf_counter() - start)
        return states, losses, seconds

    def probed(self, states: Any, index: int, final: bool) -> Result:
        """One network's accuracy on superclasses, and on classes by three probes; a candidate sees no test image."""
        own = jax.tree.map(lambda leaf: leaf[index], (states["params"], states["batch_stats"]))
        found, rows = {}, {}
        for name, split in self.splits.items():
            if final or name != "test":
                images, labels = split.memory
                logits, features = self._predicted(own, images)
                found[f"superclass_{name}_accuracy"] = float((logits.argmax(axis=1) == labels).mean())
                rows[name] = linear.Split(features, split.classes)
        num_classes = int(self.train_split.classes.max()) + 1
        found["effective_rank"] = float(effective_rank(jnp.asarray(rows["train"].features)))
        return found | (_test if final else _validate)(rows, num_classes)

    def _predicted(self, weights: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features in float32; the last batch is filled up, so that one program serves all."""
        params, batch_stats = weights
        starts = range(0, len(images), BATCH)
        batches = (images[np.minimum(np.arange(start, start + BATCH), len(images) - 1)] for start in starts)
        parts = zip(*[self.predict(params, batch_stats, jnp.asarray(batch)) for batch in batches], strict=True)
        logits, features = (np.concatenate([np.asarray(p, np.float32) for p in part])[: len(images)] for part in parts)
        return logits, features


HOW = {"l2": STRENGTHS, "standardize": True, "tolerance": 1e-3}


def _validate(rows: dict[str, linear.Split], num_classes: int) -> Result:
    """The score by which candidates are chosen: the mean of two probes, AdamW's being slow."""
    lbfgs = linear.select(rows["train"], rows["val"], num_classes, **HOW)
    found = {"L-BFGS": float(lbfgs.validation_accuracy.max()), "20-NN": _neighbours(rows, "val", num_classes)}
    return {"validation": found, "score": mean(found.values())}


def _test(rows: dict[str, linear.Split], num_classes: int) -> Result:
    lbfgs = linear.select_and_test(**rows, num_classes=num_classes, protocol="in small", **HOW)
    adamw = gradient_probe.select_and_test(ADAMW, **rows, num_classes=num_classes)
    found = {
        "L-BFGS": lbfgs.test_accuracy,
        "AdamW": adamw.test_accuracy,
        "20-NN": _neighbours(rows, "test", num_classes),
    }
    return {"test": found, "l2": lbfgs.l2, "converged": lbfgs.converged}


def _neighbours(rows: dict[str, linear.Split], name: str, num_classes: int) -> float:
    nearest = quick.knn(rows["train"].features, rows["train"].labels, rows[name].features, num_classes)
    return float((np.asarray(nearest) == rows[name].labels).mean())


def measure(path: Path | None, _settings: Settings, _found: Result, save: Callable[..., None], end: Deadline) -> None:
    """Every program in turn, saved after each. No path: a trial."""
    plan, splits = (TRIAL, _random_images()) if path is None else (FULL, splits_of(**_load(path)))
    trainers, seconds = _ready(splits, plan, end)
    runs: list[Result] = []
    result: Result = {"plan": str(plan), "images": str(path), "program_seconds": seconds, "runs": runs}
    result["not_run"] = []
    for arm, final, settings in programs(plan, runs):
        if end.left < seconds:
            result["not_run"].append(f"{arm}, {'final' if final else 'candidates'}: {end.left:.0f} s were left")
        else:
            runs += _runs(trainers[arm], settings, final)
        save(result | {"summary": summary(runs)})
        if result["not_run"]:
            break
    save(result | {"summary": summary(runs), "complete": not result["not_run"]})


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    shapes = {name: array.shape for name, array in found.items()}
    n = len(found.get("coarse", ()))
    if shapes != {"images": (n, 32, 32, 3), "fine": (n,), "coarse": (n,)} or found["images"].dtype != np.uint8:
        raise ValueError(f"{path} must hold uint8 images (n, 32, 32, 3), fine (n,) and coarse (n,), got {shapes}.")
    return found


def programs(plan: Plan, runs: Sequence[Result]) -> Iterator[tuple[str, bool, list[Setting]]]:
    """Each program's arm, whether it is tested, and its settings, as `runs` grows by those of the ones before."""
    yield NONE, False, [Setting(rate, 0.0, 0.0, TUNING_SEED, NONE) for rate in plan.rates]
    rate = choose(runs, NONE)[0]
    for arm, own in plan.arms.items():
        yield arm, False, [Setting(rate, *point, TUNING_SEED, arm) for point in own.points]
    for arm in (NONE, *plan.arms):
        yield arm, True, [Setting(*choose(runs, arm), seed, arm) for seed in range(len(plan.rates))]


def _ready(splits: dict[str, InMemory], plan: Plan, end: Deadline) -> tuple[dict[str, Trainer], float]:
    """A trainer of each arm for as many epochs as fit, and the seconds of one of their programs, probes too."""
    mesh = benchmark.one_device_mesh("cpu" if plan is TRIAL else "gpu")
    _, _, settings = next(programs(plan, []))
    settings = [replace(own, seed=seed) for seed, own in enumerate(settings)]  # the host draws for each seed
    number = 2 * (1 + len(plan.arms))

    def compiled(epochs: int) -> dict[str, Trainer]:
        found = {name: Trainer(splits, plan, arm.sites, epochs, mesh) for name, arm in plan.arms.items()}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda trainer: trainer.train(settings, 1), found.values()))
        return {NONE: next(iter(found.values())), **found}  # at weights of 0 any sites do

    def most(epoch: float, probes: float, left: float) -> int:
        fitting = (epochs for epochs in plan.epochs if number * (1.05 * epochs * epoch + probes) < left)
        return next(fitting, plan.epochs[-1])

    epochs = most(EPOCH_SECONDS, PROBE_SECONDS * len(settings), end.left - COMPILE_SECONDS)
    found = compiled(epochs)
    states, _, seconds = found[NONE].train(settings, 1)
    found[NONE].probed(states, 0, True)
    start = time.perf_counter()
    found[NONE].probed(states, len(settings) - 1, True)
    probes = len(settings) * (time.perf_counter() - start)
    if (fitting := most(seconds[-1], probes, end.left)) < epochs:  # more would not be worth it
        found, epochs = compiled(fitting), fitting  # the schedule's length is part of the program
    print(f"an epoch takes {seconds[-1]:.2f} s, probes {probes:.0f} s: {epochs} epochs", flush=True)
    return found, epochs * seconds[-1] + probes


def _runs(trainer: Trainer, settings: Sequence[Setting], final: bool) -> list[Result]:
    states, losses, seconds = trainer.train(settings, trainer.epochs)
    skipped = np.asarray(states["guard"]["skipped"]).tolist()
    found = []
    for index, own in enumerate(settings):
        run = asdict(own) | {"final": final, "epochs": trainer.epochs, "skipped": skipped[index]}
        run |= trainer.probed(states, index, final) | {"epoch_seconds": float(np.median(seconds))}
        found.append(run | {"losses": [of_epoch[index] for of_epoch in losses]})
        print({name: value for name, value in found[-1].items() if name != "losses"}, flush=True)
    return found


def choose(runs: Sequence[Result], arm: str) -> tuple[float, float, float]:
    """The arm's candidate with the best score, which is of validation images; the first of equals."""
    best = max((run for run in runs if run["arm"] == arm and not run["final"]), key=lambda run: run["score"])
    return best["learning_rate"], best["alpha"], best["beta"]


def summary(runs: Sequence[Result]) -> dict[str, dict[str, list[float | None]]]:
    """Of each arm's final runs mean, standard deviation and n; accuracies in %."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs if run["final"]):
        own = [run for run in runs if run["final"] and run["arm"] == arm]
        numbers = {"superclasses": [100 * run["superclass_test_accuracy"] for run in own]}
        numbers |= {name: [100 * run["test"][name] for run in own] for name in own[0]["test"]}
        numbers |= {"effective rank": [run["effective_rank"] for run in own]}
        for name, values in numbers.items():
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
