"""How long K settings of ResNet-32 take as one program, beside K separate runs of the ordinary training step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from train.augment import AugmentConfig
from train.benchmarks.timing import in_own_process, interleave, ratio
from train.config import AdamW, Cosine, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from train.data import pipeline
from train.experiments import grid
from train.experiments.grid import Setting
from train.trainer import mesh as meshes
from train.trainer.evaluation import device_batches
from train.trainer.model import Architecture, create_state, structure
from train.trainer.objective import objective
from train.trainer.optim import make_optimizer
from train.trainer.step import Normalize, make_train_step
from vcreg_jax import Sites, VCReg

Losses = list[Sequence[jax.Array] | jax.Array]  # of every step, those of all settings
WAYS = SEPARATE, TOGETHER = ("separate", "together")


@dataclass(frozen=True)
class Pace:
    """Both ways; CPU seconds are those of all threads."""

    step_seconds: dict[str, tuple[float, ...]]  # wall, of one step of all settings, by way and round
    step_cpu_seconds: dict[str, tuple[float, ...]]
    whole_seconds: dict[str, float]  # wall, of all settings' whole runs: processes start, compile and train
    whole_cpu_seconds: dict[str, float]
    losses: dict[str, tuple[tuple[float, ...], ...]]  # by way, step and setting
    settings: int
    devices: int
    steps: int  # of the whole runs
    batch_size: int
    image_size: int

    @property
    def ratio(self) -> float:
        """Seconds of a step together over those of separate steps, the median over the rounds."""
        return ratio(self.step_seconds[TOGETHER], self.step_seconds[SEPARATE]).median

    @property
    def loss_differences(self) -> list[float]:
        """Of every step the two ways' largest relative difference in any setting's loss."""
        return np.abs(np.divide(self.losses[TOGETHER], self.losses[SEPARATE]) - 1).max(axis=1).tolist()

    def __str__(self) -> str:
        wall = ratio(self.step_seconds[TOGETHER], self.step_seconds[SEPARATE])
        cpu = ratio(self.step_cpu_seconds[TOGETHER], self.step_cpu_seconds[SEPARATE])
        whole, whole_cpu = (own[TOGETHER] / own[SEPARATE] for own in (self.whole_seconds, self.whole_cpu_seconds))
        return (
            f"ResNet-32, {self.settings} settings, batch {self.batch_size} of {self.image_size} px, float32, on "
            f"{self.devices} device(s). As one program over as many separate ones: a compiled step {wall.median:.2f} "
            f"(quartiles {wall.low:.2f} and {wall.high:.2f}, n = {wall.n}), {cpu.median:.2f} in CPU time; whole runs "
            f"of {self.steps} steps, each from the start of its process, {whole:.2f}, {whole_cpu:.2f} in CPU time "
            f"(n = 1; {self.whole_seconds[TOGETHER]:.0f} s and {self.whole_seconds[SEPARATE]:.0f} s). The largest "
            f"difference between their losses, step by step: {', '.join(f'{d:.0e}' for d in self.loss_differences)}."
        )


def measure(
    rounds: int = 3,
    count: int = 10,
    steps: int = 96,
    batch_size: int = 64,
    image_size: int = 16,
    model: str = "resnet32",
) -> Pace:
    """Settings both ways, on random images: by default as the search of `configs/table3_small_cifar100.py`.

    There are `count` of them, or a few more, so that every device has as many.
    """
    recipe = _recipe(model, steps, batch_size, image_size)
    devices = jax.device_count()
    settings = [Setting(0.016, 0.64, 0.08, seed) for seed in range(math.ceil(count / devices) * devices)]
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, Losses] = {way: [] for way in WAYS}
    ways = {SEPARATE: _separate_steps, TOGETHER: _step_together}
    calls = {way: steps_of(recipe, settings, losses[way]) for way, steps_of in ways.items()}
    seconds = interleave({way: _time(call, cpu[way]) for way, call in calls.items()}, rounds)
    whole, whole_cpu = {}, {}
    for way, runs in ((SEPARATE, [[own] for own in settings]), (TOGETHER, [settings])):
        start = time.perf_counter()
        whole_cpu[way] = sum(in_own_process(_whole_run, way, recipe, own) for own in runs)
        whole[way] = time.perf_counter() - start
    after_warm_up = {way: tuple(values[-rounds:]) for way, values in cpu.items()}
    first = {way: tuple(tuple(map(float, own)) for own in jax.device_get(values)) for way, values in losses.items()}
    return Pace(seconds, after_warm_up, whole, whole_cpu, first, len(settings), devices, steps, batch_size, image_size)


def _recipe(model: str, steps: int, batch_size: int, image_size: int) -> TrainConfig:
    data = DataConfig(
        name="synthetic",
        label="label",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augment=AugmentConfig(max_shift=4, flip=0.5),
        in_memory=True,
        synthetic_size=image_size,
        synthetic_classes=10,
        synthetic_images=16 * batch_size,
    )
    optimizer = OptimizerConfig(AdamW(weight_decay=0.05), Cosine(0.016, warmup_steps=steps // 10))
    return TrainConfig(data, ModelConfig(model), optimizer, steps, batch_size)


def _time(call: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    def timed() -> None:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)

    return timed


def _separate_steps(recipe: TrainConfig, settings: Sequence[Setting], losses: Losses) -> Callable[[], None]:
    """One ordinary step for each setting, one after the other; the call adds their losses to `losses`."""
    data, mesh = pipeline.load(recipe.data, "train"), meshes.make_mesh(recipe.mesh)
    (setting,) = {(own.learning_rate, own.alpha, own.beta) for own in settings}
    sites = Sites(block=VCReg(*setting[1:]))
    architecture = Architecture(recipe.model, data.num_classes, data.image_shape, sites)
    graphdef, norms = structure(architecture)
    optimizer = make_optimizer(recipe.optimizer, recipe.steps, norms)
    normalize = Normalize(recipe.data.mean, recipe.data.std)
    step = make_train_step(graphdef, optimizer, normalize, objective(recipe), mesh, None, recipe.guard)
    states = [create_state(architecture, optimizer, mesh, own.seed) for own in settings]
    batches = [device_batches(data.train_batches(recipe.batch_size, own.seed, 0), mesh) for own in settings]

    def call() -> None:
        of_step = []
        with jax.set_mesh(mesh):
            for index, own in enumerate(settings):
                states[index], metrics = jax.block_until_ready(step(states[index], next(batches[index]), own.seed))
                of_step.append(metrics["loss"])
        losses.append(of_step)

    return call


def _step_together(recipe: TrainConfig, settings: Sequence[Setting], losses: Losses) -> Callable[[], None]:
    """One step of all settings as one program, vmapped but on a CPU; the call adds their losses to `losses`."""
    data, mesh = pipeline.load(recipe.data, "train"), meshes.make_mesh(replace(recipe.mesh, fsdp=1))
    vmapped = 1 if jax.default_backend() == "cpu" else None
    plain = grid.without_regularizers(recipe, data)
    program = grid.make_program(recipe, plain, Sites(block=VCReg()), mesh, vmapped)
    values, images = grid.as_arrays(settings), grid.on_devices(data, mesh)
    states = program.initial(values)
    taken = 0

    def call() -> None:
        nonlocal states, taken
        draws = grid.draw(data, recipe.batch_size, settings, range(taken, taken + 1))
        states, metrics = jax.block_until_ready(program.train(states, values, draws, images))
        losses.append(metrics["loss"][:, 0])
        taken += 1

    return call


def _whole_run(way: str, recipe: TrainConfig, settings: Sequence[Setting]) -> float:
    """CPU seconds of this process, from its start to the end of the training."""
    call = (_separate_steps if way == SEPARATE else _step_together)(recipe, settings, [])
    for _ in range(recipe.steps):
        call()
    return time.process_time()
