"""Random directions in the space of features, decided by a seed and a step: no hidden state, all devices alike."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int


def gaussian(
    seed: int, step: int | Int[Array, ""], d: int, k: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "d k"]:
    """k directions of independent standard normal entries: the same in every dtype, but for rounding.

    What is random is a multiple of 2^-23 between -1 and 1, which no compiler rounds in its own way.
    """
    drawn = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step), (d, k), jnp.float32)
    return 2**0.5 * lax.erf_inv((2 * drawn - 1 + 2**-23).astype(dtype))
