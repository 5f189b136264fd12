"""Which updates are not taken: decided on the device within the step, with the loss and the gradient's norm alone."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from train.config import GuardConfig

# skipped, in_a_row: int32 (); where spikes are skipped also recent: float32 (2, window), and seen: int32 ()
Guard = dict[str, Any]


def initial(config: GuardConfig) -> Guard:
    """The record before the first step; it is part of the training state, so that a restart decides as before."""
    guard = {"skipped": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)}
    if config.spike_sigmas is None:
        return guard
    return guard | {"recent": jnp.zeros((2, config.spike_window), jnp.float32), "seen": jnp.zeros((), jnp.int32)}


def judge(config: GuardConfig, guard: Guard, loss: Array, gradient_norm: Array) -> tuple[Array, Guard]:
    """Whether to take the update, bool (), and the record after it.

    Not taken are updates of which the loss or a gradient is not finite; from the `stop_after`-th of these in a row on
    none is, so that nothing has changed when the host finds out. And, if asked for, those with a loss or a gradient
    norm above mean + `spike_sigmas` standard deviations of the last `spike_window` finite ones, once half as many are
    known. Spikes join the window, too: what stays high is no spike for long.
    """
    values = jnp.stack([loss, gradient_norm]).astype(jnp.float32)
    fine = jnp.isfinite(values).all() & (guard["in_a_row"] < config.stop_after)
    take, after = fine, {"in_a_row": jnp.where(fine, 0, guard["in_a_row"] + 1)}
    if config.spike_sigmas is not None:
        take = fine & ~_is_spike(config.spike_sigmas, guard, values)
        place = jnp.arange(config.spike_window) == guard["seen"] % config.spike_window
        after["recent"] = jnp.where(fine & place[None], values[:, None], guard["recent"])
        after["seen"] = guard["seen"] + fine
    return take, after | {"skipped": guard["skipped"] + ~take}


def _is_spike(sigmas: float, guard: Guard, values: Array) -> Array:
    window = guard["recent"].shape[1]
    known = (jnp.arange(window) < guard["seen"])[None]
    count = jnp.minimum(guard["seen"], window)
    mean = jnp.where(known, guard["recent"], 0).sum(axis=1) / count
    variance = jnp.where(known, (guard["recent"] - mean[:, None]) ** 2, 0).sum(axis=1) / (count - 1)
    return ((count >= window // 2) & (values > mean + sigmas * jnp.sqrt(variance))).any()
