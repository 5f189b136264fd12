"""Mean and covariance of a layer over as many batches as there are, and what they say of it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Num

from vcreg_jax.regularizers.statistics import less, mean_of


class Moments(NamedTuple):
    """Of n rows h: their number, mean m and scatter.

    Attributes:
      count: n.
      mean: m, `(d,)`.
      scatter: the sum of (h - m)(h - m)', `(d, d)`.
    """

    count: Num[Array | np.ndarray, ""] | np.number | float
    mean: Float[Array | np.ndarray, " d"]
    scatter: Float[Array | np.ndarray, "d d"]

    def merge(self, other: "Moments") -> "Moments":
        """Return those of both sets of rows, in the arrays' own dtype (Chan, Golub & LeVeque 1983, Eq. 2.1)."""
        count = self.count + other.count
        share = other.count / (count + (count == 0))
        apart = other.mean - self.mean
        between = apart[:, None] * apart[None] * (self.count * share)
        mean = self.mean + apart * share
        return Moments(count, mean, self.scatter + other.scatter + between)

    def covariance(self) -> Float[Array | np.ndarray, "d d"]:
        """Return scatter / (n - 1), `(d, d)`; NaN for one row."""
        return self.scatter / (self.count - 1)


def moments(h: Float[Array, "b *rest d"], where: Bool[Array, " b"] | None = None) -> Moments:
    """Compute the moments of a batch, every leading axis counting as samples.

    Args:
      h: features `(b, ..., d)`.
      where: booleans `(b,)`: which indices of the first axis are no padding; None counts all.

    Returns:
      `Moments` in float32 or wider; those of several batches `merge`. Without a row all are 0.
    """
    samples = tuple(range(h.ndim - 1))
    kept = jnp.ones(len(h), bool) if where is None else where
    kept = jnp.broadcast_to(jnp.expand_dims(kept, samples[1:]), h.shape[:-1])
    mean = mean_of(h, kept)
    x = jnp.where(kept[..., None], less(h, mean), 0.0)
    scatter = lax.dot_general(x, x, ((samples, samples), ((), ())), precision=lax.Precision.HIGHEST)
    return Moments(kept.sum(dtype=x.dtype), mean.near + mean.rest, scatter)


class LayerStatistics(NamedTuple):
    """Variances of the features of a layer and covariances between them, all in the features' unit squared.

    Attributes:
      mean_variance: a scalar, as the others.
      smallest_variance: of all features.
      largest_variance: of all features.
      off_diagonal_rms: root of the mean square of C_ij, i != j.
      largest_off_diagonal: the largest absolute value of C_ij, i != j.
    """

    mean_variance: Float[Array, ""]
    smallest_variance: Float[Array, ""]
    largest_variance: Float[Array, ""]
    off_diagonal_rms: Float[Array, ""]
    largest_off_diagonal: Float[Array, ""]


def covariance_statistics(covariance: Float[Array | np.ndarray, "d d"]) -> LayerStatistics:
    """Summarize the diagonal and the rest of a covariance matrix; without a rest (d = 1) that is 0.

    Args:
      covariance: `(d, d)`.

    Returns:
      `LayerStatistics` of scalars.
    """
    c = jnp.asarray(covariance)
    d, variances = len(c), jnp.diagonal(c)
    off = jnp.where(jnp.eye(d, dtype=bool), 0.0, c)
    rms = jnp.sqrt(jnp.sum(off**2) / max(d * (d - 1), 1))
    return LayerStatistics(variances.mean(), variances.min(), variances.max(), rms, jnp.abs(off).max())
