"""A config's training step on this machine's own devices: does it fit, how long does it take, and how long the whole?

The step is the one that training takes, with random images in the place of the data set's, which need not be there.
Reading images, probes and reports are not in the time.
"""

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.benchmarks.preflight import Plan, heading, make_plan, remedies
from train.benchmarks.tpu_compiler import GIB, TooLarge
from train.config import Experiment
from train.experiments import experiment
from train.files import json_files
from train.run.folder import as_json, software
from train.run.provenance import hardware
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, abstract_state, create_state, structure
from train.trainer.objective import objective
from train.trainer.optim import make_optimizer
from train.trainer.step import Normalize, make_predict, make_train_step, weights_to_use
from vcreg_jax import Sites

_LEAST_STEPS = 3


@dataclass(frozen=True)
class Ran:
    """A step that ran; bytes are those of one device."""

    total_bytes: int  # arguments, results and temporaries, by the compiler
    temporary_bytes: int
    compile_seconds: float
    step_seconds: tuple[float, ...]  # of each step that was timed
    predict_seconds: float  # of a batch that is evaluated

    @property
    def step(self) -> float:
        """Seconds, the median."""
        return statistics.median(self.step_seconds)


def run(
    config: Experiment,
    device: str,
    image_shape: Sequence[int] | None,
    num_classes: int | None,
    seconds: float,
    command: str,
    json_path: Path | None,
) -> bool:
    """Compile and time every arm on the devices of this machine, print what was found; whether all fit.

    Args:
      config: an experiment.
      device: "cpu", "gpu" or "tpu".
      image_shape: height, width and channels; None asks the config's data set.
      num_classes: likewise.
      seconds: for which the steps of each arm are timed, at least three steps.
      command: that was given, for the record.
      json_path: to which everything is written, if anywhere.

    Raises:
      ValueError: for a device that this machine has not, and for a config that cannot run.
    """
    devices = find_devices(device)
    plan = make_plan(config, hardware(), devices, memory(devices[0]), image_shape, num_classes)
    print(heading(plan), flush=True)
    found: dict[str, Ran | TooLarge] = {}
    for name, sites in plan.arms.items():
        print(f"\n{name}\n  compiling ...", flush=True)
        found[name] = try_arm(plan, sites, seconds)
        print(describe(plan, found[name]), flush=True)
    ran = {name: own for name, own in found.items() if isinstance(own, Ran)}
    if len(ran) == len(found):
        print(f"\n{format_total(config, plan, ran)}")
    if json_path:
        arms = {name: {"sites": as_json(plan.arms[name]), **as_json(own)} for name, own in found.items()}
        about = {"train": as_json(plan.train), "image_shape": plan.image_shape, "num_classes": plan.num_classes}
        json_files.write(json_path, {"command": command, **software(), **about, "arms": arms})
    return len(ran) == len(found)


def find_devices(device: str) -> Sequence[Any]:
    """This machine's devices of a kind.

    Raises:
      ValueError: where there is none.
    """
    try:
        return jax.devices(device)
    except RuntimeError as error:
        hint = "For NVIDIA's install jax[cuda13] (docs/gpu_server.md)." if device == "gpu" else ""
        raise ValueError(f"JAX finds no {device} here, only {jax.default_backend()}. {hint}".strip()) from error


def memory(device: Any) -> float:
    """Bytes that a program may take on the device: what JAX grants itself, or a CPU's main memory."""
    stats = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return float(limit)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def try_arm(plan: Plan, sites: Sites, seconds: float) -> Ran | TooLarge:
    """The plan's step with regularizers at `sites`, compiled and then taken again and again for `seconds`."""
    train, mesh = plan.train, plan.mesh
    architecture = Architecture(train.model, plan.num_classes, plan.image_shape, sites, train.joint_embedding)
    graphdef, norms = structure(architecture)
    optimizer = make_optimizer(train.optimizer, train.steps, norms)
    normalize = Normalize(train.data.mean, train.data.std)
    step: Any = make_train_step(graphdef, optimizer, normalize, objective(train), mesh, train.ema, train.guard)
    kept = train.ema is not None, train.guard
    shapes = batch_shapes(plan)
    with jax.set_mesh(mesh):
        started = time.perf_counter()
        try:
            compiled = step.lower(abstract_state(architecture, optimizer, mesh, *kept), shapes, 0).compile()
            compile_seconds = time.perf_counter() - started
            used = compiled.memory_analysis()
            total = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
            total += used.temp_size_in_bytes
            if total > plan.hbm_bytes:  # a CPU would begin, and be ended by the system
                return TooLarge(float(total), compile_seconds)
            state, batch = create_state(architecture, optimizer, mesh, 0, *kept), random_batch(plan, shapes)
            taken = []
            while len(taken) < 1 + _LEAST_STEPS or sum(taken[1:]) < seconds:
                began = time.perf_counter()
                state, metrics = compiled(state, batch, 0)
                jax.block_until_ready(metrics)
                taken.append(time.perf_counter() - began)
            predict_seconds = _time_predict(make_predict(graphdef, normalize), state, batch["image"])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return TooLarge(math.inf, time.perf_counter() - started)
    return Ran(total, used.temp_size_in_bytes, compile_seconds, tuple(taken[1:]), predict_seconds)


def _time_predict(predict: Any, state: Any, images: jax.Array) -> float:
    weights = weights_to_use(state)
    jax.block_until_ready(predict(*weights, images))
    began = time.perf_counter()
    jax.block_until_ready(predict(*weights, images))
    return time.perf_counter() - began


def batch_shapes(plan: Plan) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch of the config has."""
    count, data, rows = plan.train.batch_size, plan.train.data, meshes.batch_sharding(plan.mesh)
    shapes = {"image": ((count, *plan.image_shape), jnp.uint8), "label": ((count,), jnp.int32)}
    if data.second_view is not None:
        shapes["second_image"] = shapes["image"]
    if data.augment.random_erase:
        shapes["erase_box"] = ((count, 4), jnp.int32)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in shapes.items()}


def random_batch(plan: Plan, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Images and labels by chance; nothing is erased, which takes as long."""
    rng, most = np.random.default_rng(0), {"label": plan.num_classes, "erase_box": 1}
    batch = {name: rng.integers(0, most.get(name, 256), own.shape, own.dtype) for name, own in shapes.items()}
    return meshes.to_devices(batch, plan.mesh)


def describe(plan: Plan, found: Ran | TooLarge) -> str:
    """What was found of one arm, as lines for a terminal; what a regularizer adds is for `bench table1`."""
    if isinstance(found, TooLarge):
        needed = (
            f"needs {found.needed_bytes / GIB:.2f} GiB a device" if math.isfinite(found.needed_bytes) else "refused"
        )
        change = " or ".join(remedies(plan, found.needed_bytes))
        return f"  DOES NOT FIT: {needed}. Change: {change}"
    spread = f"{min(found.step_seconds):.3g} to {max(found.step_seconds):.3g}"
    return (
        f"  fits: {found.total_bytes / GIB:.2f} GiB a device, of which temporary {found.temporary_bytes / GIB:.2f}\n"
        f"  step: {found.step:.3g} s (median of {len(found.step_seconds)}, {spread}), "
        f"{plan.train.batch_size / found.step:,.0f} images/s\n"
        f"  evaluation: {found.predict_seconds:.3g} s a batch; compiled in {found.compile_seconds:.0f} s"
    )


def format_total(config: Experiment, plan: Plan, found: dict[str, Ran]) -> str:
    """How long the training of each arm takes, and of all with all seeds and candidates, as lines for a terminal."""
    lines, whole = [], 0.0
    for arm, candidates in experiment.arms(config).items():
        trained = [own for own in candidates if not own.given]
        networks = len(config.seeds) + (len(trained) if len(candidates) > 1 else 0) if trained else 0
        own = found[arm] if arm in found else found["identity"]
        seconds = networks * plan.train.steps * own.step
        whole += seconds
        lines.append(
            f"  {arm}: {networks} networks of {plan.train.steps:,} steps, {format_duration(seconds)}"
            if networks
            else f"  {arm}: given weights, nothing to train"
        )
    left_out = "without reading of images, evaluations and probes"
    return "\n".join([f"training, all arms and seeds: {format_duration(whole)}, {left_out}", *lines])


def format_duration(seconds: float) -> str:
    """Seconds in the unit that a person would use, such as "2.5 hours"."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
