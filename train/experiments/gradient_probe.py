"""Linear probes by SGD or AdamW, at many learning rates at once: what sets too large for L-BFGS are probed with.

The classifier is linear on frozen features and starts at zero, the problem being convex. All learning rates see the
same batches and train as one program, their weights side by side.

Shapes: b rows of a batch, d features, k classes, r learning rates.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

import vcreg_jax as vc
from train.config import Cosine, GradientProbeConfig, OptimizerConfig, StepDecay
from train.trainer.optim import make_optimizer
from vcreg_jax.probes.linear import Split

Batches = Iterable[tuple[Any, Any]]  # features (b, d) and labels (b,)


class Heads(NamedTuple):
    """A linear classifier at each learning rate."""

    weights: Float[Array, "d r k"]
    bias: Float[Array, "r k"]


class Selection(NamedTuple):
    """How learning rates fare on validation; features are scaled to (features - mean) / std first."""

    heads: Heads
    best: int  # of the learning rates; of equals the first one
    validation_accuracy: Float[np.ndarray, " r"]  # fractions, by the protocol's metric
    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]


class _Rows(NamedTuple):
    """A split that was found in order."""

    features: np.ndarray
    labels: np.ndarray


class GradientProbeResult(NamedTuple):
    """What a table reports."""

    protocol: str
    learning_rate: float  # the one chosen
    validation_accuracy: Float[np.ndarray, " r"]  # fractions, by the protocol's metric
    test_accuracy: float  # fraction, by the protocol's metric


def select(config: GradientProbeConfig, train: Split, val: Split, num_classes: int) -> Selection:
    """Heads trained at every learning rate, and which is best on validation.

    Rows are read from `train.trainer.features` batch by batch, so that a memory-mapped array takes a batch's memory.

    Raises:
      ValueError: for a config that cannot run, and for splits that are empty or do not fit each other; when training
        diverges at every rate, as it does on features that are not finite.
    """
    rates = np.asarray(config.learning_rates, float)
    if rates.size == 0 or not (np.isfinite(rates) & (rates > 0)).all() or config.epochs < 1 or config.batch_size < 1:
        raise ValueError(f"A probe needs learning rates above 0, epochs and a batch size, got {config}.")
    on, by = _check("train", train, num_classes), _check("val", val, num_classes)
    mean, std = np.zeros(on.features.shape[1], np.float32), np.ones(on.features.shape[1], np.float32)
    if config.standardize:
        mean, std = _moments(on.features, config.batch_size)
    steps_per_epoch = math.ceil(len(on.labels) / config.batch_size)
    batches = ((_scale(x, mean, std), y) for x, y in _shuffle(config, on))
    heads = fit(batches, optimizer(config, steps_per_epoch), config.epochs * steps_per_epoch, rates, num_classes)
    if not _finite(heads).any():
        raise ValueError(f"Training diverged at every learning rate of {config.learning_rates}. Try smaller ones.")
    validation = _accuracy(config, heads, by, mean, std, num_classes)
    return Selection(heads, int(np.argmax(validation)), validation, mean, std)


def select_and_test(
    config: GradientProbeConfig, train: Split, val: Split, test: Split, num_classes: int
) -> GradientProbeResult:
    """Test accuracy at the learning rate that is best on validation; nothing is fitted again. Raises as `select`."""
    rows = _check("test", test, num_classes)
    found = select(config, train, val, num_classes)
    tested = _accuracy(config, found.heads, rows, found.mean, found.std, num_classes)[found.best]
    rates = config.learning_rates
    rate, drops = rates[found.best], f"{config.drops} drops to a tenth"
    protocol = (
        f"{config.protocol}: {type(config.rule).__name__} linear probe, {config.epochs} epochs of batch "
        f"{config.batch_size}, {'cosine' if config.drops is None else drops}, weight decay "
        f"{config.rule.weight_decay:g}, learning rate {rate:g} of {len(rates)} by validation {config.metric}, "
        f"test {config.metric}, features {'standardized' if config.standardize else 'as they come'}, not augmented"
    )
    return GradientProbeResult(protocol, rate, found.validation_accuracy, float(tested))


def optimizer(config: GradientProbeConfig, steps_per_epoch: int) -> OptimizerConfig:
    """The rule under the protocol's schedule with a peak of 1, which every learning rate multiplies."""
    if config.drops is None:
        return OptimizerConfig(config.rule, Cosine(1.0, warmup_steps=0))
    return OptimizerConfig(config.rule, StepDecay(1.0, config.epochs * steps_per_epoch // (config.drops + 1)))


def fit(
    batches: Batches,
    optimizer: OptimizerConfig,
    steps: int,
    learning_rates: Sequence[float] | np.ndarray,
    num_classes: int,
) -> Heads:
    """The heads after `steps` steps on the mean cross entropy of each batch.

    Batches may come from anywhere: rows of an array, or augmented images through the frozen network.
    """
    rates = jnp.asarray(np.asarray(learning_rates), jnp.float32)
    rule = make_optimizer(optimizer, steps, frozenset())
    heads = state = None
    for together in _together(itertools.islice(batches, steps)):
        features, labels = (jnp.asarray(np.stack(part)) for part in zip(*together, strict=True))
        if heads is None:
            shape = (features.shape[-1], len(rates), num_classes)
            heads = Heads(jnp.zeros(shape, jnp.float32), jnp.zeros(shape[1:], jnp.float32))
            state = rule.init(heads._asdict())
        heads, state = _steps(rule, rates, heads, state, features, labels)
    if heads is None:
        raise ValueError("A probe needs at least one batch.")
    return heads


def _together(batches: Batches) -> Iterator[list[tuple[Any, Any]]]:
    """Batches of one shape, up to 32 MB of features, that one call trains on: a call for each would cost more."""
    together: list[tuple[Any, Any]] = []
    for batch in batches:
        size, shape = batch[0].size * 4, batch[0].shape
        if together and (together[0][0].shape != shape or (len(together) + 1) * size > 32e6 or len(together) == 100):
            yield together
            together = []
        together.append(batch)
    if together:
        yield together


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _steps(
    rule: Any,
    rates: Array,
    heads: Heads,
    state: Any,
    features: Float[Array, "t b d"],
    labels: Int[Array, "t b"],
) -> tuple[Heads, Any]:
    """One step on each of t batches."""
    # Every rule ends with the learning rate, so its update is a multiple of that at a rate of 1.
    rate_of = {"weights": rates[None, :, None], "bias": rates[:, None]}

    def step(carry, batch):
        params, state = carry
        features, labels = batch

        def loss_fn(params):
            logits = _logits(Heads(**params), features.astype(jnp.float32))
            targets = jnp.broadcast_to(labels[:, None], logits.shape[:2])
            return vc.losses.cross_entropy(logits, targets).mean(axis=0).sum()  # of rates that do not meet

        updates, state = rule.update(jax.grad(loss_fn)(params), state, params)
        return ({name: params[name] + rate_of[name] * updates[name] for name in params}, state), None

    (params, state), _ = lax.scan(step, (heads._asdict(), state), (features, labels))
    return Heads(**params), state


def _logits(heads: Heads, features: Float[Array, "b d"]) -> Float[Array, "b r k"]:
    return jnp.einsum("bd,drk->brk", features, heads.weights) + heads.bias[None]


@jax.jit
def _predict(heads: Heads, features: Float[Array, "b d"]) -> Int[Array, "b r"]:
    return _logits(heads, features).argmax(axis=-1)


def _accuracy(config: GradientProbeConfig, heads: Heads, split: _Rows, mean: Any, std: Any, classes: int) -> np.ndarray:
    """The metric at each learning rate, fractions `r`; 0 for heads that are not finite."""
    hits, counts = np.zeros((classes, len(heads.bias))), np.zeros(classes)
    for at in range(0, len(split.labels), config.batch_size):
        rows = slice(at, at + config.batch_size)
        labels = split.labels[rows]
        predicted = np.asarray(_predict(heads, jnp.asarray(_scale(split.features[rows], mean, std))))
        np.add.at(hits, labels, predicted == labels[:, None])
        np.add.at(counts, labels, 1)
    seen = counts > 0
    recall = hits[seen] / counts[seen, None]
    shares = hits.sum(axis=0) / counts.sum() if config.metric == "top1" else recall.mean(axis=0)
    return np.where(_finite(heads), shares, 0)


def _finite(heads: Heads) -> np.ndarray:
    weights, bias = np.isfinite(np.asarray(heads.weights)), np.isfinite(np.asarray(heads.bias))
    return np.logical_and(weights.all(axis=(0, 2)), bias.all(axis=1))


def _shuffle(config: GradientProbeConfig, split: _Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every epoch in an order of its own; what its last batch lacks are the first rows of the same order."""
    size = config.batch_size
    for epoch in range(config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(split.labels))
        for rows in np.resize(order, math.ceil(len(order) / size) * size).reshape(-1, size):
            yield split.features[rows], split.labels[rows]


def _moments(features: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean, in float64, and standard deviation (1 for 0) of each feature; in two passes, some rows at a time."""
    blocks = [slice(at, at + rows) for at in range(0, len(features), rows)]
    mean = sum(np.asarray(features[block], np.float64).sum(axis=0) for block in blocks) / len(features)
    squares = (np.asarray(features[block], np.float64) - mean for block in blocks)
    variance = sum((block**2).sum(axis=0) for block in squares) / len(features)
    return np.asarray(mean), np.where(variance > 0, np.sqrt(variance), 1).astype(np.float32)


def _scale(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity. Check the checkpoint they come from.")
    near = np.asarray(mean, np.float32)  # what it lacks counts where the mean is far above the spread
    return ((features - near[None]) - np.asarray(mean - near, np.float32)[None]) / std[None]


def _check(name: str, split: Split, num_classes: int) -> _Rows:
    features, labels = np.asarray(split.features), np.asarray(split.labels)  # maps of files stay what they are
    if features.ndim != 2 or len(labels) == 0 or labels.shape != features.shape[:1]:
        raise ValueError(f"{name}: features must be (n, d) and labels (n,), got {features.shape} and {labels.shape}.")
    if split.mask is not None and not np.asarray(split.mask).all():
        raise ValueError(f"{name}: leave masked rows out; the probe by gradient steps takes none.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{name}: labels must be integers in 0..{num_classes - 1}, got {labels.dtype} in "
            f"{labels.min()}..{labels.max()}. Renumber them, or set num_classes."
        )
    return _Rows(features, labels)
