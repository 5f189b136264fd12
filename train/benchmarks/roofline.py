"""`python -m train bench roofline`: VCReg's extra time against what the device's own speed implies.

What the exact term must do is counted from each layer's shape. With n rows of d features of s bytes, and M of d x d:

    statistics   read h once                            2 n d^2 + 2 n d operations    n d s bytes, and 4 d^2 for M
    push         read h and the gradient, write the sum   2 n d^2 operations         3 n d s bytes, and 4 d^2 for M

The second needs all of the first, so the floor is the sum of the two, each the longer of its arithmetic at the
device's matrix rate and its traffic at the device's copy bandwidth; both are measured in the same run, as the best of
all rounds. What is measured alone is called `IN_A_ROW` times before it is waited for, so that its launch, which on a
GPU takes as long as such a pass, is hidden as it is in a network.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

import vcreg_jax as vc
from train.benchmarks import programs
from train.benchmarks.programs import PHASES, REG, SEED, Settings
from train.benchmarks.timing import Spread, in_own_process, interleave
from train.files import whole_files
from train.run.provenance import commit

COPIED = {"cpu": 2**26, "gpu": 2**28, "tpu": 2**28}  # float32 numbers, far more than a cache holds
MULTIPLIED = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # side of the square matrices
IN_A_ROW = {"cpu": 1, "gpu": 20, "tpu": 20}  # calls


@dataclass(frozen=True)
class Work:
    """What one pass over the features must do at least."""

    operations: int  # of the matrix products, a multiplication and an addition being two
    bytes: int  # read and written


@dataclass(frozen=True)
class Speed:
    """What the device does at its best."""

    operations: float  # a second, in a large product with operands of the features' dtype
    bytes: float  # a second, read and written in a large copy


def passes(shape: Sequence[int], itemsize: int) -> tuple[Work, Work]:
    """The statistics' pass and the push's, of features `(*samples, d)` of `itemsize` bytes each."""
    n, d = math.prod(shape[:-1]), shape[-1]
    features, matrix = n * d * itemsize, 4 * d * d
    return Work(2 * n * d * d + 2 * n * d, features + matrix), Work(2 * n * d * d, 3 * features + matrix)


def floor_seconds(work: Sequence[Work], speed: Speed) -> float:
    """The least time that passes take one after another, each with arithmetic and traffic at once."""
    return sum(max(w.operations / speed.operations, w.bytes / speed.bytes) for w in work)


def run(settings: Settings, facts: dict[str, str], json_path: Path, command: str) -> None:
    """Measures and prints a table for each network and precision; writes all as JSON."""
    networks = []
    for model in settings.models:
        for dtype in settings.dtypes:
            networks.append(in_own_process(measure, settings, model, dtype))
            print(text(networks[-1]), flush=True)
            written = {"command": command, "commit": commit(), **facts, "batch_size": settings.batch_size}
            whole_files.write(json_path, json.dumps(written | {"networks": networks}, indent=1) + "\n")
    print(f"\n{json_path}")


def measure(settings: Settings, model: str, dtype: str) -> dict[str, Any]:
    """One network in one precision: the device's speed, every kind of layer, and the whole network with and without."""
    mesh = programs.one_device_mesh(settings.platform)
    times = IN_A_ROW[settings.platform]
    with jax.default_device(mesh.devices.item()):
        network = programs.architecture(settings, model, dtype, "VCReg")
        shapes = Counter(site.shape for site in programs.site_shapes(network, settings.batch_size).values())
        alone = _speed_calls(settings.platform, dtype) | {
            _name(shape): _backward(shape, dtype, times) for shape in shapes
        }
        calls = dict(alone)
        for column in ("identity", "barrier", "VCReg"):
            calls[column], _ = programs.program(settings, model, dtype, PHASES[0], column, mesh)
            calls[column]()
        seconds = interleave(calls, settings.rounds)
    seconds |= {name: tuple(value / times for value in seconds[name]) for name in alone}
    speed = _speed(settings.platform, seconds)
    layers = [_layer(shape, count, dtype, speed, seconds[_name(shape)]) for shape, count in shapes.items()]
    floor = sum(layer["layers"] * layer["floor_seconds"] for layer in layers)
    extra = {
        baseline: asdict(Spread.of([a - b for a, b in zip(seconds["VCReg"], seconds[baseline], strict=True)]))
        for baseline in ("identity", "barrier")
    }
    step = {column: asdict(Spread.of(seconds[column])) for column in ("identity", "barrier", "VCReg")}
    about = {"model": model, "dtype": dtype, "speed": asdict(speed), "layers": layers}
    return about | {"floor_seconds": floor, "seconds": step, "extra_over": extra}


def device_speed(platform: str, dtype: str, rounds: int) -> Speed:
    """What JAX's first device does at its best."""
    times = IN_A_ROW[platform]
    seconds = interleave(_speed_calls(platform, dtype), rounds)
    return _speed(platform, {name: tuple(value / times for value in values) for name, values in seconds.items()})


def _speed_calls(platform: str, dtype: str) -> dict[str, Callable[[], None]]:
    matrix = jax.random.normal(jax.random.key(SEED), (MULTIPLIED[platform],) * 2, jnp.dtype(dtype))
    times = IN_A_ROW[platform]
    return {
        "copy": _ready(times, jax.jit(jnp.negative), jnp.ones((COPIED[platform],), jnp.float32)),
        "product": _ready(times, jax.jit(jnp.matmul), matrix, matrix),
    }


def _speed(platform: str, seconds: Mapping[str, Sequence[float]]) -> Speed:
    traffic, work = 8 * COPIED[platform], 2 * MULTIPLIED[platform] ** 3
    return Speed(work / min(seconds["product"]), traffic / min(seconds["copy"]))


def _name(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _layer(shape: tuple[int, ...], count: int, dtype: str, speed: Speed, seconds: Sequence[float]) -> dict[str, Any]:
    work = passes(shape, jnp.dtype(dtype).itemsize)
    floor, alone = floor_seconds(work, speed), Spread.of(seconds)
    return {
        "shape": shape,
        "layers": count,
        "operations": sum(w.operations for w in work),
        "bytes": sum(w.bytes for w in work),
        "floor_seconds": floor,
        "alone_seconds": asdict(alone),
        "alone_over_floor": alone.median / floor,
    }


def _backward(shape: tuple[int, ...], dtype: str, times: int) -> Callable[[], None]:
    """VCReg's whole backward pass at one layer, alone: features and incoming gradient in, their sum out."""
    keys = jax.random.split(jax.random.key(SEED))
    features, incoming = (jax.random.normal(key, shape, jnp.dtype(dtype)) for key in keys)
    return _ready(times, jax.jit(backward), features, incoming)


def backward(features: jax.Array, incoming: jax.Array, reg: vc.Regularizer = REG) -> jax.Array:
    """What reaches the layer before, with the regularizer's gradient added."""
    return jax.vjp(reg, features)[1](incoming)[0]


def _ready(times: int, function: Callable[..., jax.Array], *arguments: jax.Array) -> Callable[[], None]:
    compiled = cast(Any, function).lower(*arguments).compile()
    call = functools.partial(_repeat, times, compiled, *arguments)
    call()
    return call


def _repeat(times: int, function: Callable[..., jax.Array], *arguments: jax.Array) -> None:
    for _ in range(times - 1):
        function(*arguments)
    function(*arguments).block_until_ready()


def text(network: dict[str, Any]) -> str:
    """One network's table."""
    speed = network["speed"]
    columns = ("layers", "Mop", "MiB", "floor ms", "alone ms", "over floor")
    lines = [
        f"\n{network['model']}, {network['dtype']}: products at {speed['operations'] / 1e9:.4g} Gop/s, "
        f"copies at {speed['bytes'] / 1e9:.4g} GB/s",
        f"{'regularized features':20}" + "".join(f"{column:>11}" for column in columns),
    ]
    for layer in network["layers"]:
        floor, alone = layer["floor_seconds"], layer["alone_seconds"]["median"]
        lines.append(
            f"{_name(layer['shape']):20}{layer['layers']:11}{layer['operations'] / 1e6:11.1f}"
            f"{layer['bytes'] / 2**20:11.1f}{1e3 * floor:11.3f}{1e3 * alone:11.3f}{layer['alone_over_floor']:11.2f}"
        )
    floor = network["floor_seconds"]
    alone = sum(layer["layers"] * layer["alone_seconds"]["median"] for layer in network["layers"])
    lines.append(f"{'all layers':53}{1e3 * floor:11.3f}{1e3 * alone:11.3f}{alone / floor:11.2f}")
    for baseline, extra in network["extra_over"].items():
        what = f"in the network, over {baseline} (quartiles {1e3 * extra['low']:.0f} to {1e3 * extra['high']:.0f} ms)"
        lines.append(f"{what:64}{1e3 * extra['median']:11.3f}{extra['median'] / floor:11.2f}")
    return "\n".join(lines)
