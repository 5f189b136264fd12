"""What the TPU compiler says about a training step, for a pod that is not there: does it fit, what does it send?

Compiles for any TPU topology on a machine with nothing but a CPU. Cycles are the compiler's own estimates, summed over
the program's instructions: good for comparing two programs of one compiler, no measurement of time.
"""

import json
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from train import mesh as meshes
from train.config import EMAConfig, Experiment, Pretraining, TrainConfig
from train.model import Architecture, abstract_state, structure
from train.objective import Classification, Objective, objective
from train.optim import make_optimizer
from train.provenance import commit
from train.run_folder import as_json
from train.step import Normalize, make_train_step
from vcreg_jax import Sites

GIB = 2**30
# What the compiler (libtpu 0.0.42.1) grants a program on one chip.
HBM_BYTES = {"v4": 30.75 * GIB, "v5e": 15.75 * GIB, "v5p": 95.74 * GIB, "v6e": 31.25 * GIB}
_COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
)


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a program."""

    count: int
    result_bytes: int  # on one chip


@dataclass(frozen=True)
class Compiled:
    """What the compiler says about one program; bytes and operations are those of one chip."""

    cycles: int  # the compiler's estimates, summed
    operations: float  # floating point
    total_bytes: int  # arguments, results and temporaries
    temporary_bytes: int
    collectives: dict[str, Collective]  # by kind
    compile_seconds: float


@dataclass(frozen=True)
class TooLarge:
    """A program that the compiler refuses for want of memory; bytes are those of one chip."""

    needed_bytes: float
    compile_seconds: float


def topology_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU slice such as "v5e:4x4" or "v4:2x2x4", one a chip; they can be compiled for, not used.

    Raises:
      ValueError: without libtpu, and for a generation or a shape that there is not.
    """
    generation, _, shape = topology.partition(":")
    if generation not in HBM_BYTES or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(
            f"A topology is one of {', '.join(HBM_BYTES)}, a colon and chips, as v5e:4x4; got {topology!r}."
        )
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("Compiling for TPUs needs libtpu: pip install 'vcreg-jax[train,aot]'.") from error
    from jax.experimental import topologies

    # Libtpu reads these when it is loaded: no questions to a cloud's servers, and beside other processes that have it.
    environment = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if shape in ("1x1", "1x1x1"):
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"There is no topology {topology}: {error}") from error


def compile_step(
    architecture: Architecture,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    mesh: Mesh,
    objective: Objective = Classification(),  # noqa: B008 - frozen
    ema: EMAConfig | None = None,
) -> Compiled | TooLarge:
    """The whole training step, compiled for the devices of `mesh`; nothing is allocated."""
    graphdef, _ = structure(architecture)
    channels = architecture.image_shape[-1]
    normalize = Normalize((0.5,) * channels, (0.25,) * channels)  # constants, of which no cost depends
    step: Any = make_train_step(graphdef, optimizer, normalize, objective, mesh, ema)
    rows = meshes.batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *architecture.image_shape), jnp.uint8, sharding=rows),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=rows),
    }
    with jax.set_mesh(mesh):
        lowered = step.lower(abstract_state(architecture, optimizer, mesh, ema is not None), batch, 0)
        started = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return TooLarge(_needed_bytes(error), time.perf_counter() - started)
        seconds = time.perf_counter() - started
    text, memory = compiled.as_text(), compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', text)),
        compiled.cost_analysis()["flops"],
        total + memory.temp_size_in_bytes,
        memory.temp_size_in_bytes,
        collectives(text),
        seconds,
    )


def collectives(program: str) -> dict[str, Collective]:
    """Every kind of collective in the text of a compiled program, with count and bytes of the results.

    An asynchronous one counts where it is done: its start carries its operands and its state as well.
    """
    counts, sizes = defaultdict(int), defaultdict(int)
    for result, kind in re.findall(rf" = (.+?) ({_COLLECTIVES})(?:-done)?\(", program):
        counts[kind] += 1
        sizes[kind] += sum(_bytes(*array) for array in re.findall(r"([a-z]+[0-9]*)[a-z0-9]*\[([0-9,]*)\]", result))
    return {kind: Collective(counts[kind], sizes[kind]) for kind in sorted(counts)}


def _bytes(dtype: str, shape: str) -> int:
    bits = int(re.sub(r"\D", "", dtype) or 8)  # pred has no number in its name
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _needed_bytes(error: Exception) -> float:
    found = re.search(r"Used ([\d.]+)([MGT]) of|temporaries \(([\d.]+)([MGT])\)", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or found is None:
        raise error
    number, unit = found[1] or found[3], found[2] or found[4]
    return float(number) * {"M": 2**20, "G": 2**30, "T": 2**40}[unit]


@dataclass(frozen=True)
class Plan:
    """An experiment's training step on a topology, found to be possible; nothing is compiled yet."""

    name: str  # of the experiment
    topology: str
    train: TrainConfig
    image_shape: tuple[int, int, int]
    num_classes: int
    arms: dict[str, Sites]  # by name; the first, "identity", has no regularizer
    mesh: Mesh
    hbm_bytes: float  # of one chip
    state_bytes: int  # on one chip: parameters, running statistics and the optimizer's state


def plan(config: Experiment | Pretraining, topology: str, image_shape: tuple[int, int, int], num_classes: int) -> Plan:
    """What `compile_arm` works with: the arms that regularize, and none.

    Raises:
      ValueError: without libtpu, for an unknown topology, a mesh or a batch that does not divide over its chips, or a
        network that cannot take images of this shape.
    """
    train, arms = config.train, {name: sites for name, sites in config.arms.items() if sites != Sites()}
    mesh = meshes.make_mesh(train.mesh, topology_devices(topology))
    meshes.check_batch_size(train.batch_size, mesh)
    architecture = Architecture(train.model, num_classes, image_shape, Sites())
    leaves = jax.tree.leaves(abstract_state(architecture, _optimizer(architecture, train), mesh))
    state_bytes = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    hbm_bytes = HBM_BYTES[topology.partition(":")[0]]
    arms = {"identity": Sites()} | arms
    return Plan(config.name, topology, train, image_shape, num_classes, arms, mesh, hbm_bytes, state_bytes)


def compile_arm(plan: Plan, sites: Sites) -> Compiled | TooLarge:
    """The plan's step with regularizers at `sites`."""
    architecture = Architecture(plan.train.model, plan.num_classes, plan.image_shape, sites)
    optimizer = _optimizer(architecture, plan.train)
    train = plan.train
    return compile_step(architecture, optimizer, train.batch_size, plan.mesh, objective(train), train.ema)


def _optimizer(architecture: Architecture, train: TrainConfig) -> optax.GradientTransformation:
    return make_optimizer(train.optimizer, train.steps, structure(architecture)[1])


def heading(plan: Plan) -> str:
    """What is to be compiled, as lines for a terminal."""
    chips, images = plan.mesh.size, plan.train.batch_size
    return (
        f"{plan.name}: {plan.train.model.name}, {plan.train.model.dtype}, images of {plan.image_shape}, "
        f"{plan.num_classes} classes\n"
        f"{plan.topology}: {chips} chips of {plan.hbm_bytes / GIB:.2f} GiB, {images} images a step, "
        f"{images // chips} a chip; state {plan.state_bytes / GIB:.2f} GiB a chip"
    )


def described(plan: Plan, found: Compiled | TooLarge, without: Compiled | TooLarge) -> str:
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
    return options or ["take a topology of more chips"]


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
    path.write_text(json.dumps(result, indent=2) + "\n")
