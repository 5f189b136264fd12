"""An exponential moving average of the weights, as torchvision's recipes keep it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from train.config import EMAConfig

Weights = dict[str, Any]  # params, batch_stats: nested dicts of arrays


def adjusted_decay(base_decay: float, batch_size: int, every_steps: int, epochs: int) -> float:
    """The decay of one update from torchvision's `--model-ema-decay`: 1 - min(1, (1 - base) batch every / epochs).

    Source: pytorch/vision references/classification/train.py; `batch_size` is over all devices.
    """
    return 1.0 - min(1.0, (1.0 - base_decay) * batch_size * every_steps / epochs)


def update(config: EMAConfig, average: Weights, weights: Weights, step: Array, take: Array | bool = True) -> Weights:
    """The average after training step `step` (from 0), which made `weights`.

    It changes at every `every_steps`-th step of an epoch, the first one included: to
    `decay * average + (1 - decay) * weights`, or, up to step `copy_steps`, to `weights`. Running statistics are
    averaged like parameters. Nothing changes after an update that was not taken.
    """
    due = take & (step % config.steps_per_epoch % config.every_steps == 0)
    copies = step <= config.copy_steps

    def mixed() -> Weights:
        return jax.tree.map(
            lambda old, new: jnp.where(copies, new, config.decay * old + (1 - config.decay) * new), average, weights
        )

    return jax.lax.cond(due, mixed, lambda: average)
