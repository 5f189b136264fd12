"""What surrounds the networks: the regularizer, the loss, the schedules, the update rules, the moving average.

All of it in float64.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcreg_jax as vc
from train.config import LARS, SGD, AdamW, Cosine, EMAConfig, OptimizerConfig, StepDecay
from train.interop.crosscheck import torch_side
from train.interop.crosscheck.item import Item, compare, worst_of
from train.trainer import ema
from train.trainer.optim import learning_rate, make_optimizer

STEPS = 20


def regularizer() -> Iterator[Item]:
    """What VCReg's backward pass adds, in float64."""
    h = np.random.default_rng(0).normal(size=(6, 5, 5, 12)) @ np.diag(np.linspace(0.3, 1.6, 12))
    h += np.random.default_rng(1).normal(size=(6, 5, 5, 1))  # so that features are correlated
    centred = h - h.mean(axis=(0, 1, 2))
    alpha, beta, delta = 0.64, 0.08, 0.5

    def added(h: np.ndarray, **options: Any) -> np.ndarray:
        with jax.enable_x64(True):
            _, backward = jax.vjp(vc.VCReg(alpha, beta, **options), jnp.asarray(h))
            return np.asarray(backward(jnp.zeros(h.shape))[0])

    exact, clipped = (torch_side.penalty_gradient(h, alpha, beta, limit) for limit in (None, delta))
    yield compare("VCReg: gradient, float64", added(h), exact, 1e-12)
    yield compare("VCReg: gradient with delta, float64", added(h, delta=delta), clipped, 1e-12)
    printed = torch_side.algorithm_1(centred, alpha, beta)
    ours = added(centred, scale="algorithm_1")
    yield compare("VCReg: scale algorithm_1 against Algorithm 1, float64", ours, printed, 1e-12)
    # Eqs. 3, 4 and 7 again: n - 1 times the covariance's part is n - 1 times beta.
    ours, more = added(h, delta=delta, scale="algorithm_1"), beta * (h.size // h.shape[-1] - 1)
    printed = torch_side.penalty_gradient(h, alpha, more, delta)
    yield compare("VCReg: scale algorithm_1 with delta, float64", ours, printed, 1e-12)


def label_smoothing() -> Iterator[Item]:
    """The cross-entropy with smoothing 0.1 of 9 rows and its gradient, in float64."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 7)) * 3, rng.integers(0, 7, 9)
    values, gradient = torch_side.smoothed_cross_entropy(logits, labels, 0.1)
    with jax.enable_x64(True):
        ours = vc.losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1)
        slope = jax.grad(lambda z: vc.losses.cross_entropy(z, jnp.asarray(labels), 0.1).mean())(jnp.asarray(logits))
    yield compare("label smoothing: values, float64", ours, values, 1e-12)
    yield compare("label smoothing: gradient, float64", slope, gradient, 1e-12)


# Four steps an epoch; every step's rate is compared.
SCHEDULES = {
    "steps": (StepDecay(0.1, every_steps=4 * 30), 90),
    "warm-up and cosine per epoch": (Cosine(3e-3, 4 * 30, warmup_start=0.033, hold_steps=4), 300),
    "warm-up and cosine per step": (Cosine(4e-3, 4 * 10), 100),
    "warm-up and cosine down to a share of the peak": (Cosine(4.8, 4 * 5, end=1e-3), 100),
}


def schedules() -> Iterator[Item]:
    """The learning rate at every step; `relative` is the worst step's own."""
    for name, (config, epochs) in SCHEDULES.items():
        with jax.enable_x64(True):
            rate = learning_rate(config, 4 * epochs)
            ours = [np.asarray(rate(jnp.int32(step)))[None] for step in range(4 * epochs)]
        theirs = [np.asarray(value)[None] for value in torch_side.rates(config, epochs, 4)]
        yield worst_of(f"schedule: {name}, float64", ours, theirs, 1e-11)


def optimizers() -> Iterator[Item]:
    """The parameters after 20 updates with random gradients; the second of them is a normalization layer's."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(3, 4)), rng.normal(size=4)]
    gradients = [[rng.normal(size=value.shape) for value in start] for _ in range(STEPS)]
    constant, warmed = StepDecay(0.1, every_steps=STEPS), Cosine(1e-2, 5)
    rules = {
        "SGD with momentum and weight decay": OptimizerConfig(SGD(1e-4), constant),
        "AdamW, norms decayed, clipped": OptimizerConfig(AdamW(0.05, decay_norms=True), warmed, clip_norm=1.0),
        "AdamW, no decay for norms, scheduled": OptimizerConfig(AdamW(0.05), warmed),
        "LARS, scheduled": OptimizerConfig(LARS(1e-2), Cosine(0.3, 5)),
        "LARS, biases slower": OptimizerConfig(LARS(1e-2, bias_rate=0.016), Cosine(0.3, 5, end=1e-3)),
    }
    for name, config in rules.items():
        with jax.enable_x64(True):
            ours = _update(make_optimizer(config, STEPS, frozenset({("1",)})), start, gradients)
        theirs = torch_side.update(config, start, gradients)
        # PyTorch clips by 1 / (norm + 1e-6).
        yield worst_of(f"{name}: 20 updates, float64", ours, theirs, 1e-6 if config.clip_norm else 1e-12)


def moving_average() -> Iterator[Item]:
    """torchvision's average of parameters and batch statistics, over two epochs of warm-up and two more."""
    decay = ema.adjusted_decay(0.99998, batch_size=1024, every_steps=32, epochs=600)
    config = EMAConfig(decay, steps_per_epoch=50, every_steps=8, copy_steps=100)
    rng = np.random.default_rng(0)
    history = [{"weight": rng.normal(size=(3, 4)), "running_mean": rng.normal(size=4)} for _ in range(200)]
    with jax.enable_x64(True):
        update = jax.jit(partial(ema.update, config))
        average = jax.tree.map(jnp.zeros_like, history[0])
        for step, weights in enumerate(history):
            average = update(average, jax.tree.map(jnp.asarray, weights), jnp.int32(step))
    theirs = torch_side.moving_average(history, base_decay=0.99998, epochs=600, warmup_epochs=2)
    yield worst_of(
        "EMA with adjusted decay: 200 steps, float64", [np.asarray(average[name]) for name in history[0]], theirs, 1e-12
    )


def _update(
    optimizer: optax.GradientTransformation, start: list[np.ndarray], gradients: list[list[np.ndarray]]
) -> list[np.ndarray]:
    params = {str(index): jnp.asarray(value) for index, value in enumerate(start)}
    state = optimizer.init(params)
    for values in gradients:
        gradient = {str(index): jnp.asarray(value) for index, value in enumerate(values)}
        updates, state = optimizer.update(gradient, state, params)
        params = cast(dict[str, jax.Array], optax.apply_updates(params, updates))
    return [np.asarray(value) for value in params.values()]
