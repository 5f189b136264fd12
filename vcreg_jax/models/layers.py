"""Layers that several models share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float


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
