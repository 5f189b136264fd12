"""Does a training step fit a TPU pod that is not there, what does it send, and what does the regularizer add?"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from train.benchmarks.tpu_compiler import GIB, HBM_BYTES, Compiled, TooLarge, compile_step, topology_devices
from train.config import Experiment, TrainConfig
from train.experiments import experiment
from train.experiments.grid import Grid
from train.files import whole_files
from train.run.folder import as_json
from train.run.provenance import commit
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, abstract_state, structure
from train.trainer.objective import objective
from train.trainer.optim import make_optimizer
from vcreg_jax import Sites


def run(
    config: Experiment | Grid,
    topology: str,
    image_shape: Sequence[int] | None,
    num_classes: int | None,
    command: str,
    json_path: Path | None,
) -> bool:
    """Compiles every arm, prints what was found and writes it after each; whether all fit.

    What is None of the shape of the images and the number of classes is asked of the config's data set.
    """
    jax.config.update("jax_platforms", "cpu")  # also where there are chips, which may be at work
    memory = HBM_BYTES.get(topology.partition(":")[0], 0.0)
    planned = make_plan(config, topology, topology_devices(topology), memory, image_shape, num_classes)
    print(heading(planned), flush=True)
    found: dict[str, Compiled | TooLarge] = {}
    for name, sites in planned.arms.items():
        found[name] = compile_arm(planned, sites)
        print(f"\n{name}\n{describe(planned, found[name], found['identity'])}", flush=True)
        if json_path:
            write_json(planned, found, command, json_path)
    return all(isinstance(arm, Compiled) for arm in found.values())


@dataclass(frozen=True)
class Plan:
    """An experiment's training step on some devices, found to be possible; nothing is compiled yet."""

    name: str  # of the experiment
    topology: str  # of the devices, in words
    train: TrainConfig
    image_shape: tuple[int, int, int]
    num_classes: int
    arms: dict[str, Sites]  # by name; the first, "identity", has no regularizer
    mesh: Mesh
    hbm_bytes: float  # memory of one device
    state_bytes: int  # on one device: parameters, running statistics and the optimizer's state


def make_plan(
    config: Experiment | Grid,
    topology: str,
    devices: Sequence[Any],
    hbm_bytes: float,
    image_shape: Sequence[int] | None,
    num_classes: int | None,
) -> Plan:
    """What `compile_arm` works with: the arms that regularize, and none.

    What is None of the shape of the images and the number of classes is asked of the config's data set.

    Raises:
      ValueError: for a mesh or a batch that does not divide over the devices, a network that cannot take images of
        this shape, and a data set that is asked and not there.
    """
    if image_shape is None or num_classes is None:
        from train.data import pipeline

        data = pipeline.load(config.train.data, "train")
        image_shape = data.image_shape if image_shape is None else image_shape
        num_classes = data.num_classes if num_classes is None else num_classes
    height, width, channels = image_shape
    image_shape = height, width, channels
    if min(*image_shape, num_classes) < 1:
        raise ValueError(f"Images and classes need sizes of at least 1, got {image_shape} and {num_classes} classes.")
    train, arms = config.train, {name: sites for name, sites in _sites(config).items() if sites != Sites()}
    mesh = meshes.make_mesh(train.mesh, devices)
    meshes.check_batch_size(train.batch_size, mesh)
    architecture = Architecture(train.model, num_classes, image_shape, Sites(), train.joint_embedding)
    leaves = jax.tree.leaves(abstract_state(architecture, _optimizer(architecture, train), mesh))
    state_bytes = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    arms = {"identity": Sites()} | arms
    return Plan(config.name, topology, train, image_shape, num_classes, arms, mesh, hbm_bytes, state_bytes)


def _sites(config: Experiment | Grid) -> dict[str, Sites]:
    """Of every arm; candidates differ in numbers alone, so the first speaks for all."""
    if isinstance(config, Grid):
        return {arm: own.sites for arm, own in config.arms.items()}
    return {arm: candidates[0].sites for arm, candidates in experiment.arms(config).items()}


def compile_arm(plan: Plan, sites: Sites) -> Compiled | TooLarge:
    """The plan's step with regularizers at `sites`."""
    architecture = Architecture(plan.train.model, plan.num_classes, plan.image_shape, sites, plan.train.joint_embedding)
    optimizer = _optimizer(architecture, plan.train)
    train = plan.train
    return compile_step(architecture, optimizer, train.batch_size, plan.mesh, objective(train), train.ema, train.guard)


def _optimizer(architecture: Architecture, train: TrainConfig) -> optax.GradientTransformation:
    return make_optimizer(train.optimizer, train.steps, structure(architecture)[1])


def heading(plan: Plan) -> str:
    """The network, the batch and the devices, as lines for a terminal."""
    devices, images = plan.mesh.size, plan.train.batch_size
    return (
        f"{plan.name}: {plan.train.model.name}, {plan.train.model.dtype}, images of {plan.image_shape}, "
        f"{plan.num_classes:,} classes\n"
        f"{plan.topology}: {devices} x {plan.hbm_bytes / GIB:.2f} GiB, {images:,} images a step, "
        f"{images // devices:,} a device; state {plan.state_bytes / GIB:.2f} GiB a device"
    )


def describe(plan: Plan, found: Compiled | TooLarge, without: Compiled | TooLarge) -> str:
    """What was found of one arm, as lines for a terminal; `without` is the same without a regularizer."""
    if isinstance(found, TooLarge):
        change = " or ".join(remedies(plan, found.needed_bytes))
        return f"  DOES NOT FIT: needs {found.needed_bytes / GIB:.2f} GiB a chip. Change: {change}"
    share = ""
    if isinstance(without, Compiled) and found is not without:
        share = f", {found.cycles / without.cycles - 1:+.1%} by the regularizer"
    sent = [f"{each.count} {kind}, {each.result_bytes / 1e6:.1f} MB" for kind, each in found.collectives.items()]
    return (
        f"  fits: {found.total_bytes / GIB:.2f} GiB a chip, of which temporary {found.temporary_bytes / GIB:.2f}\n"
        f"  cycles: {found.cycles:,} (estimated, without communication){share}; {found.operations:.3e} operations\n"
        f"  collectives: {'; '.join(sent) or 'none'}\n"
        f"  compiled in {found.compile_seconds:.0f} s"
    )


def remedies(plan: Plan, needed_bytes: float) -> list[str]:
    """What to change for a step to fit that needs so much on a chip, most promising first."""
    train, chips, options = plan.train, plan.mesh.size, []
    per_chip = train.batch_size // chips
    # What is no state grows with the batch; a tenth is kept for what does not shrink with it.
    share = 0.9 * (plan.hbm_bytes - plan.state_bytes) / max(needed_bytes - plan.state_bytes, 1)
    if (images := min(int(per_chip * share), per_chip - 1)) > 0:
        options.append(f"--train.batch-size {images * chips}")
    if train.mesh.fsdp < chips and plan.state_bytes > plan.hbm_bytes / 10:
        options.append(f"--train.mesh.fsdp {min(chips, 4 * train.mesh.fsdp)}")
    if train.model.dtype == "float32":
        options.append("--train.model.dtype bfloat16")
    return options or ["take more devices"]


def write_json(plan: Plan, found: dict[str, Compiled | TooLarge], command: str, path: Path) -> None:
    """Everything that was found, with the versions and the commit that it was found with."""
    result = {
        "command": command,
        "commit": commit(),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "flax", "optax")},
        "topology": plan.topology,
        "chips": plan.mesh.size,
        "train": as_json(plan.train),
        "image_shape": plan.image_shape,
        "num_classes": plan.num_classes,
        "hbm_bytes": plan.hbm_bytes,
        "state_bytes": plan.state_bytes,
        "arms": {name: {"sites": as_json(plan.arms[name]), **as_json(arm)} for name, arm in found.items()},
        "fits": all(isinstance(arm, Compiled) for arm in found.values()),
    }
    whole_files.write(path, json.dumps(result, indent=2) + "\n")
