"""Convolution whose gradients are fast on CPUs inside loops, too."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from vcreg_jax.regularizers.statistics import vary_with


class Convolution(nnx.Conv):
    """`nnx.Conv` without bias, its padding the same on all sides: the same parameters, values and gradients."""

    def __call__(self, inputs: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:  # pyright: ignore
        """The convolved maps, in the module's dtype."""
        ((pad, _), _), (stride, _) = self.padding, self.strides  # pyright: ignore
        (kernel,) = vary_with(inputs, self.kernel[...])
        return convolution(inputs.astype(self.dtype), kernel.astype(self.dtype), stride, pad)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c o"], stride: int, pad: int
) -> Float[Array, "b h2 w2 o"]:
    """y_{hwo} = sum_{ijc} kernel_{ijco} x_{s h + i - pad, s w + j - pad, c}, zero outside: `lax`'s convolution.

    In the body of a loop (`lax.scan`, `lax.map`) XLA compiles a convolution's two gradients for CPUs as plain nested
    loops: 20 and 90 times as slow as outside of one (jax 0.10.2, 128 maps of 16x16x16, 3x3). There both are written as
    convolutions of the forward kind, which are as fast in a loop as elsewhere. On other backends nothing changes.
    """
    return _forward_kind(x, kernel, stride, pad)


def _forward(x: Array, kernel: Array, stride: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _forward_kind(x, kernel, stride, pad), (x, kernel)


def _backward(stride: int, pad: int, residuals: tuple[Array, Array], incoming: Array) -> tuple[Array, Array]:
    rewritten, native = (functools.partial(way, stride, pad) for way in (_rewritten_vjp, _native_vjp))
    return lax.platform_dependent(*residuals, incoming, cpu=rewritten, default=native)


convolution.defvjp(_forward, _backward)


def _forward_kind(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    sides, layout = ((pad, pad), (pad, pad)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=layout)


def _native_vjp(stride: int, pad: int, x: Array, kernel: Array, incoming: Array) -> tuple[Array, Array]:
    function: Callable = lambda x, kernel: _forward_kind(x, kernel, stride, pad)  # noqa: E731
    return jax.vjp(function, x, kernel)[1](incoming)


def _rewritten_vjp(stride: int, pad: int, x: Array, kernel: Array, incoming: Array) -> tuple[Array, Array]:
    size = kernel.shape[0]
    # A stride leaves out positions of the map with stride 1, to which nothing then comes back.
    full = tuple(length + 2 * pad - size + 1 for length in x.shape[1:3])
    gaps = ((n - (m - 1) * stride - 1, stride - 1) for n, m in zip(full, incoming.shape[1:3], strict=True))
    borders = ((0, 0, 0), *((0, after, between) for after, between in gaps), (0, 0, 0))
    incoming = lax.pad(incoming, jnp.zeros((), incoming.dtype), borders)
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    # Of the kernel's gradient the maps' channels are the images, and the images the channels.
    of_kernel = _forward_kind(x.transpose(3, 1, 2, 0), incoming.transpose(1, 2, 0, 3), 1, pad)
    return _forward_kind(incoming, turned, 1, size - 1 - pad), of_kernel.transpose(1, 2, 0, 3)
