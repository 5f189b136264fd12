"""How a penalty of the covariance of features becomes a regularizer: a matrix M, and one product `x @ M`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.regularizers.of_batch import BatchRegularizer, count_of
from vcreg_jax.regularizers.statistics import (
    centred,
    less,
    mean_of,
    moments,
    num_samples,
    projected,
    statistics_dtype,
)


class CovarianceRegularizer(BatchRegularizer):
    """A regularizer that defines its penalty as a function of the covariance of the rows.

    With x the n centred rows and C = x'x / (n - 1), the gradient is x M, where M is 2 / (n - 1) times the gradient with
    respect to C. That is one matrix product, and at most one all-reduce over a sharded batch. With fewer than two rows
    penalty and gradient are 0.
    """

    def of_covariance(self, cov: Array, n: Any) -> Array:
        """The penalty of n rows with this unbiased covariance."""
        raise NotImplementedError

    def matrix(self, cov: Array, n: Any) -> Array:
        """M, which is symmetric: by autodiff of `of_covariance` alone, unless a subclass knows it."""
        return jax.grad(self.of_covariance)(cov, n) * (2 / degrees_of_freedom(n))

    def directions(self, d: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "d k"] | None:
        """S, if C is to be the covariance of the projections x S; the gradient is then x S M S'."""
        del d, dtype
        return None

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """The penalty in the textbook form."""
        directions = self.directions(h.shape[-1], statistics_dtype(h))
        n, samples = count_of(h, keep, axes), tuple(range(h.ndim - 1))
        x = less(h, mean_of(h, keep, axes))
        x = x if keep is None else jnp.where(keep[..., None], x, 0.0)
        x = x if directions is None else projected(x, directions)
        scatter = lax.dot_general(x, x, ((samples, samples), ((), ())))
        scatter = lax.psum(scatter, axes) if axes else scatter
        return jnp.where(n > 1, self.of_covariance(scatter / degrees_of_freedom(n), n), 0.0)

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """x M, or x S M S'."""
        if num_samples(h, axes) < 2:
            return jnp.zeros(h.shape, statistics_dtype(h))
        directions = self.directions(h.shape[-1], statistics_dtype(h))
        n, mean, cov = moments(h, axes, samples_spec, keep, directions)
        matrix = self.matrix(cov, n) if keep is None else jnp.where(n > 1, self.matrix(cov, n), 0.0)
        # Written out once: TPUs would compute it anew with every tile of rows that it is multiplied with.
        matrix = lax.optimization_barrier(matrix.astype(h.dtype))
        x = centred(h, mean)
        x = x if keep is None else jnp.where(keep[..., None], x, 0)
        if directions is None:
            return projected(x, matrix)
        in_sketch = projected(projected(x, directions).astype(h.dtype), matrix).astype(h.dtype)
        return projected(in_sketch, directions.T)


def degrees_of_freedom(n: Any) -> Any:
    """n - 1, at least 1: a float, since products of integers with it could overflow int32, or an array."""
    return float(max(n - 1, 1)) if isinstance(n, int) else jnp.maximum(n - 1, 1)
