"""What the TPU compiler says about a training step, on a machine with nothing but a CPU.

Cycles are the compiler's own estimates, summed over the program's instructions: good for comparing two programs of one
compiler, no measurement of time.
"""

import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from train.config import EMAConfig, GuardConfig
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, abstract_state, structure
from train.trainer.objective import Classification, Objective
from train.trainer.step import Normalize, make_train_step

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
        raise ValueError("Compiling for TPUs needs libtpu: pip install -e '.[train,aot]'.") from error
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
    guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> Compiled | TooLarge:
    """The whole training step, compiled for the devices of `mesh`; nothing is allocated."""
    graphdef, _ = structure(architecture)
    channels = architecture.image_shape[-1]
    normalize = Normalize((0.5,) * channels, (0.25,) * channels)  # constants, of which no cost depends
    step: Any = make_train_step(graphdef, optimizer, normalize, objective, mesh, ema, guard)
    rows = meshes.batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *architecture.image_shape), jnp.uint8, sharding=rows),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=rows),
    }
    if architecture.joint_embedding is not None:
        batch["second_image"] = batch["image"]
    with jax.set_mesh(mesh):
        lowered = step.lower(abstract_state(architecture, optimizer, mesh, ema is not None, guard), batch, 0)
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
