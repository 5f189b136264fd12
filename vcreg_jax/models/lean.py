"""GELU and layer norm that keep their inputs alone for the backward pass.

Autodiff keeps every array that their formulas pass through, in bfloat16 networks some of them in float32. With these
the forward and backward pass of a ViT-B/32 takes 5 % less time and 24 % less memory on an H200 (bfloat16), and a
quarter less time on a CPU. Like everything with a `jax.custom_vjp` they have no forward-mode derivative.
"""

import functools
import math
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from vcreg_jax.regularizers.statistics import statistics_dtype, vary_with


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Phi(x), Phi being the normal distribution function: `jax.nn.gelu(x, approximate=False)`.

    Source: Hendrycks & Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
    """
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x, incoming):
    wide = _recompute(x).astype(statistics_dtype(x))
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    slope = 0.5 * lax.erfc(-wide * math.sqrt(0.5)) + wide * density
    return ((incoming.astype(wide.dtype) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` over the last axis: the same parameters, values and gradients."""

    def __call__(self, x: Float[Array, "*rest d"]) -> Float[Array, "*rest d"]:  # pyright: ignore
        """(x - mean) / sqrt(var + eps) * scale + bias, in the module's dtype."""
        scale, bias = vary_with(x, self.scale[...], self.bias[...])  # pyright: ignore
        return cast(Array, _layer_norm(x, scale, bias, self.epsilon)).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, eps):
    normalized, _ = _normalize(x, eps)
    return normalized * _like(scale, x) + _like(bias, x)


def _layer_norm_forward(x, scale, bias, eps):
    return _layer_norm(x, scale, bias, eps), (x, scale)


def _layer_norm_backward(eps, residuals, incoming):
    x, scale = residuals
    normalized, over_std = _normalize(_recompute(x), eps)
    samples = tuple(range(x.ndim - 1))
    pulled = incoming * _like(scale, x)
    pulled -= pulled.mean(axis=-1, keepdims=True) + normalized * (pulled * normalized).mean(axis=-1, keepdims=True)
    return (pulled * over_std).astype(x.dtype), (incoming * normalized).sum(axis=samples), incoming.sum(axis=samples)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _normalize(x: Array, eps: float) -> tuple[Array, Array]:
    """(x - mean) / sqrt(var + eps) over the last axis, by the two-pass formula, and 1 / sqrt(var + eps)."""
    wide = x.astype(statistics_dtype(x))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    over_std = lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    return centred * over_std, over_std


def _like(parameter, x):
    return jnp.expand_dims(parameter, tuple(range(x.ndim - 1)))


def _recompute(x: Array) -> Array:
    """`x`, behind a barrier on GPUs.

    A compiler that sees the same formula in both passes may keep its values from the first. The barrier hides that it
    is the same, so a GPU computes them again. TPUs and CPUs get none: with the barriers of `jax.checkpoint` a ViT-B/32
    took 12 % more cycles by the estimate for a TPU.
    """
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)
