"""Network, image size, batch and steps that fit the images, the device and the time: one step is timed, here and now.

What a step costs at another size follows from it by the number of pixels; what an evaluation costs, from a forward
pass being about a third of a step.
"""

import math
import time
from dataclasses import dataclass

import jax

from train.config import TrainConfig
from train.data import measures
from train.experiments.try_folder.images import Facts
from train.trainer import mesh as meshes
from train.trainer.evaluation import device_batches
from train.trainer.model import create_state
from train.trainer.objective import objective
from train.trainer.prepare import prepare
from train.trainer.step import Normalize, make_train_step
from vcreg_jax import Sites

SEEDS = (0, 1, 2)
ARMS = 2
SIDES = (16, 24, 32, 48, 64, 96, 128, 160, 224)  # pixels
EPOCHS = (10, 200)  # as many are worth more than larger images; more are not worth their time
FEWEST_STEPS = 60  # fewer teach nothing, whatever the time
IN_MEMORY = 2**30  # bytes of images
_SHARE = 0.75  # of what time is left that goes into training and evaluation; the rest is the probes' and the reports'
_FORWARD = 0.35  # of a step's time
_COMPILED = 4  # programs in a run, each about as long to compile as the one that was timed
_TIMED = 3.0  # seconds


@dataclass(frozen=True)
class Timing:
    """What one training step costs on this device."""

    side: int  # pixels
    batch_size: int
    compile_seconds: float
    step_seconds: float


@dataclass(frozen=True)
class Choice:
    """All that was chosen."""

    network: str
    dtype: str
    side: int  # pixels of the square that the network sees
    batch_size: int
    learning_rate: float
    steps: int
    counts: tuple[int, int, int]  # images to train, validate and test that are used
    in_memory: bool
    step_seconds: float
    epochs: float


def choose_first(facts: Facts, platform: str) -> Choice:
    """What is timed: the network for this device, images of up to 32 pixels where they are small, of 64 elsewhere."""
    train = facts.counts[0]
    network = measures.choose_network(facts.shorter_side, platform)
    largest = 128 if platform == "cpu" else 512
    # Eight batches an epoch at least: VCReg's statistics want large ones, training wants many.
    batch_size = max(8, min(largest, 2 ** int(math.log2(max(train / 8, 1)))))
    batch_size = min(batch_size, train)
    return Choice(
        network=network,
        dtype="float32" if platform == "cpu" else "bfloat16",
        side=min(list_sides(facts)[-1], 32 if platform == "cpu" else 224),
        batch_size=batch_size,
        learning_rate=8e-3 if batch_size > 128 else 4e-3,
        steps=FEWEST_STEPS,
        counts=facts.counts,
        in_memory=True,
        step_seconds=0.0,
        epochs=0.0,
    )


def list_sides(facts: Facts) -> list[int]:
    """Sizes to choose from, none beyond what the images have; a size as it is needs no resampling."""
    smaller = [side for side in SIDES if side < facts.shorter_side]
    return [*smaller, facts.shorter_side] if facts.shorter_side <= SIDES[-1] else smaller


def time_step(config: TrainConfig, sites: Sites) -> Timing:
    """The real step with real batches, the slower arm's, once it is compiled."""
    run = prepare(config, sites)
    normalize = Normalize(config.data.mean, config.data.std)
    step = make_train_step(run.graphdef, run.optimizer, normalize, objective(config), run.mesh, None, config.guard)
    with jax.set_mesh(run.mesh):
        state = create_state(run.architecture, run.optimizer, run.mesh, 0, False, config.guard)
        rows = meshes.host_rows(run.mesh, config.batch_size)
        batches = device_batches(run.data.train_batches(config.batch_size, 0, 0, None, rows), run.mesh)
        batch, started = next(batches), time.perf_counter()
        state, metrics = step(state, batch, 0)
        jax.block_until_ready(metrics)
        compiled, taken = time.perf_counter(), 0
        while taken < 2 or time.perf_counter() - compiled < _TIMED:
            state, metrics = step(state, next(batches), 0)
            jax.block_until_ready(metrics)
            taken += 1
        seconds = (time.perf_counter() - compiled) / taken
    return Timing(run.data.image_shape[0], config.batch_size, max(compiled - started - seconds, 0.0), seconds)


def choose(facts: Facts, first: Choice, timing: Timing, seconds: float) -> Choice:
    """The largest images at which enough epochs fit into `seconds`, all that is left, or else the smallest.

    Where a look at each would take too long, a part of the images is used, as `counts` says.
    """
    left = max(_SHARE * seconds - _COMPILED * timing.compile_seconds, 0.1 * seconds)
    of_a_run = left / (ARMS * len(SEEDS))
    options = list_sides(facts) if first.network != "resnet18" else [side for side in list_sides(facts) if side >= 64]
    for side in reversed(options or list_sides(facts)):
        step_seconds = timing.step_seconds * (side / timing.side) ** 2
        steps = _steps(of_a_run, step_seconds, first.batch_size, facts.counts)
        if steps * first.batch_size >= EPOCHS[0] * facts.counts[0]:
            break
    least = max(2000, 20 * facts.probe_classes)
    counts = _fewer(of_a_run, step_seconds, first.batch_size, facts.counts, least)
    steps = _steps(of_a_run, step_seconds, first.batch_size, counts)
    steps = max(FEWEST_STEPS, min(steps, EPOCHS[1] * counts[0] // first.batch_size))
    return Choice(
        network=first.network,
        dtype=first.dtype,
        side=side,
        batch_size=first.batch_size,
        learning_rate=first.learning_rate,
        steps=steps,
        counts=counts,
        in_memory=sum(counts) * side * side * facts.channels <= IN_MEMORY,
        step_seconds=step_seconds,
        epochs=steps * first.batch_size / counts[0],
    )


def _steps(seconds: float, step_seconds: float, batch_size: int, counts: tuple[int, int, int]) -> int:
    """How many steps a run of `seconds` has time for, beside its looks at images."""
    return int(max(seconds / step_seconds - _looks(batch_size, counts), 0))


def _looks(batch_size: int, counts: tuple[int, int, int]) -> float:
    """One at every training image and two at those for validation and test, in steps that take as long."""
    return _FORWARD * (counts[0] + 2 * (counts[1] + counts[2])) / batch_size


def _fewer(
    seconds: float, step_seconds: float, batch_size: int, counts: tuple[int, int, int], least: int
) -> tuple[int, int, int]:
    """As many images of each split as can be looked at in a quarter of the time, but of none fewer than `least`."""
    share, fewer = 1.0, counts
    while _looks(batch_size, fewer) * step_seconds > seconds / 4 and max(fewer) > least:
        share *= 0.8
        train, validation, test = (min(count, max(least, int(share * count))) for count in counts)
        fewer = train, validation, test
    return fewer
