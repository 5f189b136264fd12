"""Learning-rate schedules and update rules, as PyTorch's recipes and the cited papers have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from train.config import LARS, SGD, AdamW, Cosine, OptimizerConfig, StepDecay
from vcreg_jax.models.layers import BatchNorm

Path = tuple[str | int, ...]

# By the module's type and not its name, as torchvision's recipes tell them.
_NORMALIZATION = (BatchNorm, nnx.LayerNorm, nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.RMSNorm)


def learning_rate(config: Cosine | StepDecay, steps: int) -> optax.Schedule:
    """The learning rate of each of `steps` steps, in float32; exact to rounding down to the last step.

    With t the step, or with `hold_steps` the first of its epoch, w = warmup_steps, s = warmup_start and e = end,

        t < w:   peak (s + (1 - s) t / w)
        t >= w:  peak (e + (1 - e) / 2 (1 + cos(pi (t - w) / (steps - w))))

    Raises:
      ValueError: when the warm-up is not shorter than the run, or a number of steps between changes is below 1.
    """
    if isinstance(config, StepDecay):
        if config.every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {config.every_steps}.")
        return lambda step: config.peak_learning_rate * config.factor ** (jnp.asarray(step) // config.every_steps)
    peak, warmup, hold = config.peak_learning_rate, config.warmup_steps, config.hold_steps
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup_steps must lie in [0, steps={steps}), got {warmup}.")
    if hold < 1:
        raise ValueError(f"hold_steps must be at least 1, got {hold}.")

    def rate(step):
        t = jnp.minimum(jnp.asarray(step) // hold * hold, steps)
        rising = config.warmup_start + (1 - config.warmup_start) * t / max(warmup, 1)
        # (1 + cos x) / 2 = sin^2((pi - x) / 2), which keeps its digits where the rate is small.
        left = jnp.sin(jnp.pi / 2 * (steps - t) / (steps - warmup)) ** 2
        return peak * jnp.where(t < warmup, rising, config.end + (1 - config.end) * left)

    return rate


def learning_rates(config: Cosine | StepDecay, steps: int) -> np.ndarray:
    """`learning_rate` of every step, float32 (steps,), for logs."""
    return np.broadcast_to(jax.vmap(learning_rate(config, steps))(jnp.arange(steps)), steps)


def normalization_parameters(model: nnx.Module) -> frozenset[Path]:
    """The paths of the parameters that normalization layers own."""
    paths = set()
    for module_path, module in nnx.iter_modules(model):
        if isinstance(module, _NORMALIZATION):
            owned = nnx.to_flat_state(nnx.state(module, nnx.Param))
            paths |= {(*module_path, *path) for path, _ in owned}
    return frozenset(paths)


@functools.lru_cache
def make_optimizer(config: OptimizerConfig, steps: int, norms: frozenset[Path]) -> optax.GradientTransformation:
    """The update rule under its schedule; `norms` are the paths of normalization layers' parameters.

    The same object for the same arguments, so that programs that close over it are compiled once.

    Clipping scales by max / norm; PyTorch divides by norm + 1e-6.
    """
    rate = learning_rate(config.schedule, steps)
    match config.rule:
        case AdamW(weight_decay, decay_norms, b1, b2):
            mask = None if decay_norms else functools.partial(_outside, norms)
            rule = optax.adamw(rate, b1, b2, weight_decay=weight_decay, mask=mask)
        case SGD(weight_decay, momentum):
            rule = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum))
        case LARS():
            rule = lars(rate, config.rule)
    return rule if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def lars(rate: optax.ScalarOrSchedule, config: LARS) -> optax.GradientTransformation:
    """LARS with the learning rate after the momentum, which the papers have and `optax.lars` has not:

        u = g + weight_decay p;   u <- u trust_coefficient |p| / |u| unless a norm is 0    matrices and kernels only
        m <- momentum m + u;      p <- p - rate m

    Of parameters with fewer than two axes (biases, norms) u is g, and the rate is `bias_rate` times the others'. You,
    Gitman & Ginsburg, "Large Batch Training of Convolutional Networks" (arXiv 1708.03888), with the exclusions of
    SimCLR, Barlow Twins and VICReg.
    """
    rule = optax.chain(
        optax.masked(optax.add_decayed_weights(config.weight_decay), _has_two_axes),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient), _has_two_axes),
        optax.trace(config.momentum),
        optax.scale_by_learning_rate(rate),
    )
    if config.bias_rate is None:
        return rule
    return optax.chain(rule, optax.masked(optax.scale(config.bias_rate), _has_one_axis))


def _outside(paths: frozenset[Path], params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(entry.key for entry in path) not in paths,  # of nested dicts
        params,
    )


def _has_two_axes(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _has_one_axis(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim < 2, params)
