"""Layers and initialisers that several models share."""

from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.regularizers.add_gradient import Regularizer
from vcreg_jax.regularizers.mean_removal import MeanRemoval, RemoveMean
from vcreg_jax.regularizers.statistics import in_groups, num_samples, shard_axes, statistics_dtype

# Torch's default for the weights of linear layers and convolutions: U(+-1 / sqrt(fan_in)).
torch_default = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_default_bias(fan_in: int) -> nnx.Initializer:
    """Torch's default for their biases, which is that of the weights: U(+-1 / sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear_rates(last: float, depth: int) -> list[float]:
    """Rates of stochastic depth that grow linearly from 0 in the first of `depth` blocks to `last` in the last."""
    return [last * index / max(depth - 1, 1) for index in range(depth)]


class DropPath(nnx.Module):
    """Stochastic depth: the residual branch of a random subset of images is dropped, the rest scaled up.

    Torchvision's mode "row" (Huang et al., arXiv 1603.09382). The mask is drawn from the `dropout` stream of the
    `rngs` given to the call; the module itself holds no random state.
    """

    def __init__(self, rate: float):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"The rate of stochastic depth must lie in [0, 1), got {rate}.")
        self.rate = rate

    def __call__(self, x: Float[Array, " b *rest"], rngs: nnx.Rngs | None) -> Float[Array, " b *rest"]:
        """`x` with whole images zeroed at `rate` and the kept ones over 1 - `rate`; `x` itself without rngs."""
        if self.rate == 0.0 or rngs is None:
            return x
        kept = jax.random.bernoulli(rngs.dropout(), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias per channel, with torch's `BatchNorm2d` as the model.

    In training, mean and variance are the batch's; otherwise the running ones, which training moves by a tenth
    of the way to the batch's mean and *unbiased* variance (`nnx.BatchNorm` stores the biased one). Statistics are
    float32 or wider, by the two-pass formula, and the result has `dtype`.

    `scope="global"` takes them over the whole batch, also when it is sharded. `scope=k` normalises k groups of
    consecutive rows by their own statistics, as k workers of a data-parallel PyTorch run do. Those keep the running
    statistics of their first worker; here all groups' are averaged, which has the same expectation and less noise.

    Raises:
      ValueError: in training, when a channel has a single value, or the batch does not divide into the groups.
    """

    momentum = 0.1  # in torch's sense: the share of the new value
    eps = 1e-5

    def __init__(self, dim: int, *, scope: Literal["global"] | int = "global", dtype: DTypeLike = jnp.float32):
        if scope != "global" and (isinstance(scope, bool) or not isinstance(scope, int) or scope < 1):
            raise ValueError(f'BatchNorm needs scope="global" or a number of groups >= 1, got {scope!r}.')
        self.scope: Literal["global"] | int = scope
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((dim,)))
        self.bias = nnx.Param(jnp.zeros((dim,)))
        self.mean = nnx.BatchStat(jnp.zeros((dim,)))
        self.var = nnx.BatchStat(jnp.ones((dim,)))

    def __call__(self, x: Float[Array, "*samples d"], train: bool) -> Float[Array, "*samples d"]:
        """The normalised features; with `train`, the running statistics are updated."""
        dtype = statistics_dtype(x)
        if not train:
            centred, var = x.astype(dtype) - _like(self.mean[...], x), self.var[...]
            return self._scaled(centred, _like(var, x))
        axes = shard_axes(x) if self.scope == "global" else ()
        groups = x[None] if self.scope == "global" else in_groups(x, self.scope)
        n = num_samples(groups, axes) // groups.shape[0]
        if n < 2:
            raise ValueError(f"BatchNorm needs more than 1 value per channel in training, got {n} in {x.shape}.")
        samples = tuple(range(1, groups.ndim - 1))
        mean = _mean(groups.astype(dtype), samples, axes)
        centred = groups.astype(dtype) - mean
        var = _mean(jnp.square(centred), samples, axes)
        self._update(mean, var * (n / (n - 1)), shard_axes(x))
        return self._scaled(centred, var).reshape(x.shape)

    def _scaled(self, centred: Array, var: Array) -> Array:
        factor = lax.rsqrt(var + self.eps) * _like(self.scale[...], var)
        return (centred * factor + _like(self.bias[...], centred)).astype(self.dtype)

    def _update(self, mean: Array, unbiased_var: Array, axes: tuple[str, ...]) -> None:
        for running, new in ((self.mean, mean), (self.var, unbiased_var)):
            new = new.reshape(-1, new.shape[-1]).mean(axis=0)
            new = lax.pmean(new, axes) if axes and self.scope != "global" else new
            old = running[...]
            running[...] = ((1 - self.momentum) * old + self.momentum * new).astype(old.dtype)


def _mean(x: Array, samples: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    mean = x.mean(axis=samples, keepdims=True)
    return lax.pmean(mean, axes) if axes else mean


def _like(per_channel: Array, x: Array) -> Array:
    return jnp.expand_dims(per_channel, tuple(range(x.ndim - 1)))


class Site(nnx.Module):
    """A place of a network where a regularizer is applied, after the batch's mean is removed if `RemoveMean` asks."""

    def __init__(self, reg: Regularizer, dim: int):
        removes_mean, self.regularize = isinstance(reg, RemoveMean), reg.reg if isinstance(reg, RemoveMean) else reg
        scope: Any = getattr(self.regularize, "scope", "global")
        self.mean_removal = MeanRemoval(dim, scope=scope) if removes_mean else None

    def __call__(self, h: Float[Array, "*samples d"], train: bool) -> Float[Array, "*samples d"]:
        """`h`, less its mean if that is removed."""
        return self.regularize(h if self.mean_removal is None else self.mean_removal(h, train))


def run_blocks(blocks: Iterable[nnx.Module], x: Array, *, train: bool, rngs: nnx.Rngs | None, remat: bool) -> Array:
    """`x` through `blocks` one after the other.

    With `remat` only each block's input is kept for the backward pass, which computes the rest again: the same
    numbers for less memory and about a third more work. Each block is called as `block(x, train, rngs)`.
    """

    def call(block: nnx.Module, x: Array, rngs: nnx.Rngs | None) -> Array:
        return block(x, train, rngs)  # pyright: ignore[reportCallIssue]

    call = nnx.remat(call) if remat else call
    for block in blocks:
        x = call(block, x, rngs)
    return x
