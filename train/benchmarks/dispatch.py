"""`python -m train bench dispatch`: what Python takes for each call of the training step, the device's work apart.

A null step has the step's own signature; its state has every array of the real one at size 1, its arithmetic is one
addition to each, and its time bounds the dispatch from above. Of the real step there is the time until its call
returns, which it does before the work is done, and the processor time of the calling thread alone, which the other
threads that do a CPU's work do not enter. Last, what placing a batch on the mesh takes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.benchmarks import programs
from train.benchmarks.programs import NORMALIZE, OPTIMIZER, SEED, Settings
from train.benchmarks.timing import Spread, in_own_process
from train.files import whole_files
from train.run.provenance import commit
from train.trainer.mesh import to_devices
from train.trainer.model import create_state, structure
from train.trainer.objective import Classification
from train.trainer.optim import make_optimizer
from train.trainer.step import State, make_train_step

TARGET = 0.005  # seconds a call


def run(settings: Settings, facts: dict[str, str], json_path: Path, command: str) -> None:
    """Measures every network, prints a table and writes it as JSON."""
    print(f"\n{'network':16}{'arrays':>7}  {'what':42}{'median ms':>10}{'quartiles':>20}{'n':>5}")
    networks = {}
    for model in settings.models:
        found = networks[model] = in_own_process(measure, settings, model)
        for what, spread in found["seconds"].items():
            quartiles = f"{1e3 * spread['low']:.2f} to {1e3 * spread['high']:.2f}"
            row = (
                f"{model:16}{found['arrays']:7}  {what:42}{1e3 * spread['median']:10.2f}{quartiles:>20}{spread['n']:5}"
            )
            print(row, flush=True)
    written = {"command": command, "commit": commit(), **facts, "target_seconds": TARGET, "networks": networks}
    whole_files.write(json_path, json.dumps(written, indent=1) + "\n")
    print(f"\nTarget: {1e3 * TARGET:g} ms a step. {json_path}")


def measure(settings: Settings, model: str) -> dict[str, Any]:
    """The times of one network's training step with VCReg at every block."""
    mesh = programs.one_device_mesh(settings.platform)
    network = programs.architecture(settings, model, "float32", "VCReg")
    graphdef, norms = structure(network)
    optimizer = make_optimizer(OPTIMIZER, 1000, norms)
    state = create_state(network, optimizer, mesh, SEED)
    host_batch = programs.random_batch(settings)
    batch = to_devices(host_batch, mesh)
    step = make_train_step(graphdef, optimizer, NORMALIZE, Classification(), mesh)
    null_rounds = max(20 * settings.rounds, 100)
    null = time_calls(null_step, null_state(state, mesh), batch, null_rounds)
    real = time_calls(step, state, batch, settings.rounds)
    placing = []
    for _ in range(null_rounds):
        start = time.perf_counter()
        placed = to_devices(host_batch, mesh)
        placing.append(time.perf_counter() - start)
        jax.block_until_ready(placed)
    seconds = {
        "null step, until it returns": null[0],
        "real step, until it returns": real[0],
        "real step, processor time of the thread": real[1],
        "placing a batch": placing,
    }
    spreads = {what: asdict(Spread.of(values)) for what, values in seconds.items()}
    return {"arrays": len(jax.tree.leaves(state)), "seconds": spreads}


def null_state(state: State, mesh: Mesh) -> State:
    """The state's tree of arrays, each with one element of its dtype and on the same mesh."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(jnp.zeros((1,) * leaf.ndim, leaf.dtype), replicated), state)


@jax.jit(donate_argnums=0)
def null_step(state: State, batch: dict[str, jax.Array], seed: int) -> tuple[State, dict[str, jax.Array]]:
    """The training step's signature, and next to none of its work."""
    metrics = {"loss": jnp.float32(seed), "accuracy": batch["label"][0] * 1.0, "gradient_norm": jnp.float32(0.0)}
    # An addition, as JAX hands an array that comes back unchanged past the program.
    return jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state), metrics


def time_calls(
    step: Callable[..., Any], state: State, batch: dict[str, jax.Array], calls: int
) -> tuple[list[float], list[float]]:
    """Seconds until each call returned, and of the calling thread's processor time; the work itself is not clocked."""
    wall, thread = [], []
    for index in range(calls + 2):
        start, start_of_thread = time.perf_counter(), time.thread_time()
        state, metrics = step(state, batch, SEED)
        took, took_of_thread = time.perf_counter() - start, time.thread_time() - start_of_thread
        jax.block_until_ready((state, metrics))
        if index >= 2:  # the first compiles, the second may still find something new
            wall.append(took)
            thread.append(took_of_thread)
    return wall, thread
