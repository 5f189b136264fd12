"""Depthwise convolution that is fast on every backend."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.regularizers.statistics import vary_with


class DepthwiseConv(nnx.Module):
    """Each channel convolved with a kernel of its own, stride 1, zero padding that keeps the size; with bias.

    Parameters are laid out as in `nnx.Conv(dim, dim, (k, k), feature_group_count=dim)`.
    """

    def __init__(self, dim: int, kernel_size: int, *, kernel_init: nnx.Initializer, dtype: DTypeLike, rngs: nnx.Rngs):
        if kernel_size % 2 == 0:
            raise ValueError(f"DepthwiseConv keeps the size only with an odd kernel_size, got {kernel_size}.")
        self.kernel = nnx.Param(kernel_init(rngs.params(), (kernel_size, kernel_size, 1, dim)))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The convolved maps, in the module's dtype."""
        (kernel,) = vary_with(x, self.kernel[...])
        kernel, bias = kernel.astype(self.dtype), self.bias[...].astype(self.dtype)
        x = x.astype(self.dtype)
        return depthwise_conv(x, kernel) + bias.reshape(1, 1, 1, -1)


@jax.custom_vjp
def depthwise_conv(x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]) -> Float[Array, "b h w c"]:
    """y_{hwc} = sum_{ij} kernel_{ijc} x_{h+i-k/2, w+j-k/2, c}, zero outside: `lax`'s grouped convolution.

    XLA has no depthwise kernel for CPUs. There a sum over the kernel's positions takes its place, which was 30
    times as fast forward and 5 to 15 times forward and backward (jax 0.10.2, 2 cores, 7x7 kernels, maps of 4x4x32
    to 56x56x96). Elsewhere it is the grouped convolution itself.
    """
    return lax.platform_dependent(x, kernel, cpu=_sum_of_shifts, default=_convolve_in_groups)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], incoming: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*residuals, incoming, cpu=_vjp_of_shifts, default=_vjp_of_grouped_convolution)


depthwise_conv.defvjp(_forward, _backward)


def _convolve_in_groups(x: Array, kernel: Array) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _vjp_of_grouped_convolution(x: Array, kernel: Array, incoming: Array) -> tuple[Array, Array]:
    return jax.vjp(_convolve_in_groups, x, kernel)[1](incoming)


def _sum_of_shifts(x: Array, kernel: Array) -> Array:
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = _pad(x, size // 2)
    positions = itertools.product(range(size), repeat=2)
    terms = (padded[:, i : i + height, j : j + width] * kernel[i, j].reshape(1, 1, 1, -1) for i, j in positions)
    return sum(terms, start=jnp.zeros((), x.dtype))


def _vjp_of_shifts(x: Array, kernel: Array, incoming: Array) -> tuple[Array, Array]:
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = _pad(x, size // 2)

    def row_of_kernel_gradient(i):
        rows = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
        products = (rows[:, :, j : j + width] * incoming for j in range(size))
        return jnp.stack([product.sum(axis=(0, 1, 2)) for product in products])

    # A loop over rows and not one expression for all positions: a third of the time, to run and to compile.
    kernel_gradient = lax.map(row_of_kernel_gradient, jnp.arange(size))
    return _sum_of_shifts(incoming, kernel[::-1, ::-1]), kernel_gradient[:, :, None]


def _pad(x: Array, pad: int) -> Array:
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
