"""Mean and covariance of a layer over as many batches as there are, and what they say of it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Num

from vcreg_jax.statistics import less, mean_of


class Moments(NamedTuple):
    """Of n rows h: n, their mean m, and the sum of (h - m)(h - m)'."""

    count: Num[Array | np.ndarray, ""] | np.number | float
    mean: Float[Array | np.ndarray, " d"]
    scatter: Float[Array | np.ndarray, "d d"]

    def merge(self, other: "Moments") -> "Moments":
        """Those of both sets of rows together (Chan, Golub & LeVeque 1983, Eq. 2.1), in the arrays' own dtype."""
        count = self.count + other.count
        share = other.count / (count + (count == 0))
        apart = other.mean - self.mean
        between = apart[:, None] * apart[None] * (self.count * share)
        mean = self.mean + apart * share
        return Moments(count, mean, self.scatter + other.scatter + between)

    def covariance(self) -> Float[Array | np.ndarray, "d d"]:
        """scatter / (n - 1); NaN for one row."""
        return self.scatter / (self.count - 1)


def moments(h: Float[Array, "b *rest d"], where: Bool[Array, " b"] | None = None) -> Moments:
    """The moments of a batch, every leading axis counting as samples, in float32 or wider.

    `where` keeps those indices of the first axis that are no padding. Without a row all moments are 0.
    """
    samples = tuple(range(h.ndim - 1))
    kept = jnp.ones(len(h), bool) if where is None else where
    kept = jnp.broadcast_to(jnp.expand_dims(kept, samples[1:]), h.shape[:-1])
    mean = mean_of(h, kept)
    x = jnp.where(kept[..., None], less(h, mean), 0.0)
    scatter = lax.dot_general(x, x, ((samples, samples), ((), ())), precision=lax.Precision.HIGHEST)
    return Moments(kept.sum(dtype=x.dtype), mean.near + mean.rest, scatter)


class LayerStatistics(NamedTuple):
    """Variances of the features of a layer and covariances between them, all in the features' unit squared."""

    mean_variance: Float[Array, ""]
    smallest_variance: Float[Array, ""]
    largest_variance: Float[Array, ""]
    off_diagonal_rms: Float[Array, ""]  # root of the mean square of C_ij, i != j
    largest_off_diagonal: Float[Array, ""]  # absolute value


def covariance_statistics(covariance: Float[Array | np.ndarray, "d d"]) -> LayerStatistics:
    """What the diagonal and the rest of a covariance matrix hold; without a rest (d = 1) that is 0."""
    c = jnp.asarray(covariance)
    d, variances = len(c), jnp.diagonal(c)
    off = jnp.where(jnp.eye(d, dtype=bool), 0.0, c)
    rms = jnp.sqrt(jnp.sum(off**2) / max(d * (d - 1), 1))
    return LayerStatistics(variances.mean(), variances.min(), variances.max(), rms, jnp.abs(off).max())
