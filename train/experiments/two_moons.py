"""Figure 1: small networks on two moons that one axis alone separates, all seeds trained together.

The data, the first network and the methods are those of Pezeshki et al., "Gradient Starvation" (arXiv 2011.09468),
as in Figure_3/moon_fig_3.py of github.com/mpezeshki/Gradient_Starvation at 67808b8.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from numpy.typing import NDArray
from sklearn.datasets import make_moons

import vcreg_jax as vc
from train.config import check_seeds

GRID, EDGE = 100, 2.0  # the function is seen at GRID x GRID points of [-EDGE, EDGE]^2

Params = list[dict[str, Array]]


@dataclass(frozen=True)
class Method:
    """What is done against the network's leaning on one feature alone; by default nothing."""

    steps: int = 1  # times the figure's
    rule: Literal["sgd", "adam"] = "sgd"  # SGD has a momentum of 0.9
    learning_rate: float = 1e-2
    weight_decay: float = 0.0  # added to the gradient
    rotation: float = 0.0  # of the data, degrees
    dropout: float = 0.0  # share of units dropped before each relu
    batch_norm: bool = False  # before each relu
    spectral_decoupling: float = 0.0  # times the mean square of the output, added to the loss
    regularizer: vc.Regularizer = vc.identity  # of the output of every hidden layer
    widths: tuple[int, ...] | None = None  # of the hidden layers, in place of the network's

    def __post_init__(self):
        sizes = (self.learning_rate, self.weight_decay, self.spectral_decoupling)
        whole = min((self.steps, *(self.widths or ())))
        if not (all(0 <= size < math.inf for size in sizes) and 0 <= self.dropout < 1 and whole >= 1):
            raise ValueError(f"A method has a number that cannot be meant: {self}.")


@dataclass(frozen=True)
class TwoMoons:
    """Every method on every network, all seeds together."""

    name: str  # of the folder under `runs_directory`
    networks: dict[str, tuple[int, ...]]  # widths of the hidden layers
    methods: dict[str, Method]
    seeds: tuple[int, ...] = tuple(range(10))
    steps: int = 1000  # of the whole set
    samples: int = 300
    noise: float = 0.1
    margin: float = 0.1  # between the classes along the axis that separates them; half of it on each side
    runs_directory: str = "runs"

    def __post_init__(self):
        check_seeds(self.seeds)
        widths = [width for each in self.networks.values() for width in each]
        whole = min((self.steps, self.samples // 4, *widths))
        if not (0 <= self.noise < math.inf and 0 <= self.margin < math.inf and whole >= 1):
            raise ValueError(
                "Two moons need steps and widths of at least 1, four samples, and no noise or margin below 0, got "
                f"{self.steps}, {widths}, {self.samples}, {self.noise} and {self.margin}."
            )


class Found(NamedTuple):
    """What became of one network under one method; s seeds, n points."""

    values: NDArray  # s GRID GRID: its output, the first coordinate along the first of these axes
    slopes: NDArray  # s n 2: its derivative at the points by the axis that separates and by the other one
    accuracy: NDArray  # s, of the points


def points(config: TwoMoons, seed: int, rotation: float = 0.0) -> tuple[NDArray, NDArray]:
    """Points (n, 2) and labels -1 or 1 (n,): the first coordinate separates them by a straight line.

    Both moons moved apart across their length, every point mirrored to its class's side, and the two coordinates
    exchanged: the first tells the class alone, while the second only bends.
    """
    x, y = map(np.asarray, make_moons(config.samples, noise=config.noise, random_state=seed))
    sign = 2.0 * y - 1.0
    across = x[:, 1] - 0.3 * sign
    across = across - across.mean()
    across = across * np.sign(-across * sign) - sign * config.margin
    return np.stack([across, x[:, 0] - 0.5], axis=1) @ _turn(rotation), sign


def _turn(degrees: float) -> NDArray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


def train(config: TwoMoons, network: Sequence[int], method: Method) -> Found:
    """`method` on the network with these hidden widths, every seed with its own points and weights."""
    data = [points(config, seed, method.rotation) for seed in config.seeds]
    x, y = (jnp.asarray(np.stack(part), jnp.float32) for part in zip(*data, strict=True))
    widths = tuple(method.widths or network)
    seeds = jnp.asarray(config.seeds, jnp.uint32)
    values, slopes, outputs = jax.device_get(_train(method, widths, config.steps * method.steps, seeds, x, y))
    values = values.reshape(len(config.seeds), GRID, GRID)
    return Found(values, slopes @ _turn(method.rotation).T, (np.sign(outputs) == np.asarray(y)).mean(axis=1))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(method: Method, widths: tuple[int, ...], steps: int, seeds: Array, x: Array, y: Array) -> Any:
    optimizer = _optimizer(method)

    def one_seed(seed: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
        key = jax.random.key(seed)
        params = _initial((2, *widths, 1), jax.random.fold_in(key, 0))

        def loss_fn(params: Params, step_key: Array) -> Array:
            f = _output(method, params, x, x, step_key)
            return jax.nn.softplus(-y * f).mean() + method.spectral_decoupling * (f**2).mean()

        def step(carry: Any, t: Array) -> tuple[Any, None]:
            params, opt_state = carry
            gradients = jax.grad(loss_fn)(params, jax.random.fold_in(key, t + 1))
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
        evaluate = functools.partial(_output, method, params, seen=x)
        slopes = jax.vmap(jax.grad(lambda point: evaluate(point[None])[0]))(x)
        return evaluate(_grid()), slopes, evaluate(x)

    return jax.vmap(one_seed)(seeds, x, y)


def _optimizer(method: Method) -> optax.GradientTransformation:
    if method.rule == "adam":
        return optax.adam(method.learning_rate)
    return optax.chain(optax.add_decayed_weights(method.weight_decay), optax.sgd(method.learning_rate, momentum=0.9))


def _grid() -> Array:
    axis = jnp.linspace(-EDGE, EDGE, GRID)
    return jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _initial(sizes: Sequence[int], key: Array) -> Params:
    """PyTorch's default: weights and biases uniform up to the square root of 1 / fan-in."""

    def layer(i: int) -> dict[str, Array]:
        bound = sizes[i] ** -0.5
        weight, bias = jax.random.split(jax.random.fold_in(key, i))
        return {
            "kernel": jax.random.uniform(weight, (sizes[i], sizes[i + 1]), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias, (sizes[i + 1],), minval=-bound, maxval=bound),
            "scale": jnp.ones(sizes[i + 1]),  # of the batch norm
            "shift": jnp.zeros(sizes[i + 1]),
        }

    return [layer(i) for i in range(len(sizes) - 1)]


def _output(method: Method, params: Params, x: Array, seen: Array, key: Array | None = None) -> Array:
    """The network's output (n,) at `x`; with a key, in training.

    Batch norms take the statistics of the points `seen`, which in training are the whole set: with one batch there is
    nothing for running averages to average but their own lag.
    """
    at_x, at_seen = x, seen
    for i, layer in enumerate(params[:-1]):
        at_x, at_seen = (_linear(layer, h) for h in (at_x, at_seen))
        if method.batch_norm:
            mean, std = at_seen.mean(axis=0, keepdims=True), jnp.sqrt(at_seen.var(axis=0, keepdims=True) + 1e-5)
            at_x, at_seen = ((h - mean) / std * layer["scale"][None] + layer["shift"][None] for h in (at_x, at_seen))
        if method.dropout and key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - method.dropout, at_x.shape)
            at_x = jnp.where(kept, at_x / (1 - method.dropout), 0)
        at_x, at_seen = jax.nn.relu(at_x), jax.nn.relu(at_seen)
        if key is not None:
            at_x = method.regularizer(at_x)
    return _linear(params[-1], at_x)[:, 0]


def _linear(layer: dict[str, Array], h: Array) -> Array:
    return h @ layer["kernel"] + layer["bias"][None]
