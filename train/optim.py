"""Optimizers and schedules, from optax's parts."""

import functools

import jax
import optax
from flax import nnx

from train.config import OptimizerConfig
from vcreg_jax.models.layers import BatchNorm

Path = tuple[str | int, ...]

# What `weight_decay` spares: parameters owned by a normalization layer, by the module's type and not its name.
_NORMALIZATION = (BatchNorm, nnx.LayerNorm, nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.RMSNorm)


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear from 0 to the peak over the warm-up, then cosine to 0 at `steps`; a function of the step.

    Raises:
      ValueError: when the warm-up is not shorter than the run.
    """
    if not 0 <= config.warmup_steps < steps:
        raise ValueError(f"warmup_steps must lie in [0, steps={steps}), got {config.warmup_steps}.")
    warmup = optax.linear_schedule(0.0, config.peak_learning_rate, config.warmup_steps)
    decay = optax.cosine_decay_schedule(config.peak_learning_rate, steps - config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def normalization_parameters(model: nnx.Module) -> frozenset[Path]:
    """The paths of the parameters that normalization layers own."""
    paths = set()
    for module_path, module in nnx.iter_modules(model):
        if isinstance(module, _NORMALIZATION):
            owned = nnx.to_flat_state(nnx.state(module, nnx.Param))
            paths |= {(*module_path, *path) for path, _ in owned}
    return frozenset(paths)


@functools.lru_cache
def make_optimizer(config: OptimizerConfig, steps: int, without_decay: frozenset[Path]) -> optax.GradientTransformation:
    """AdamW with the schedule, decaying every parameter but those at the paths `without_decay`.

    The same object for the same arguments, so that programs that close over it are compiled once.
    """

    def decays(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: tuple(entry.key for entry in path) not in without_decay, params
        )

    return optax.adamw(
        learning_rate(config, steps), config.b1, config.b2, weight_decay=config.weight_decay, mask=decays
    )
