"""Losses of self-supervised learning by joint embedding: SimCLR, VICReg, Barlow Twins.

Functions of the embeddings of two views of the same n images, `(n, d)` each, row i of one belonging to row i of the
other; a scalar comes out, in float32 or wider. Under `jit` over a mesh of auto axes statistics and negatives are
those of the whole sharded batch, and gradients flow through what is gathered for it.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, nn
from jaxtyping import Float

from vcreg_jax.regularizers.statistics import covariance, less, mean_of, statistics_dtype


@dataclass(frozen=True)
class NTXent:
    """SimCLR's loss: each of the 2n embeddings is to find its other view among the 2n - 1 that are not itself.

    A call takes the embeddings of two views, `(n, d)` each, and returns a scalar. With rows u of unit length,
    s_ij = u_i . u_j / temperature and positives p(i), it is

        sum_views / (2n) * sum_i ( log sum_{j != i} exp(s_ij) - s_{i,p(i)} )   SimCLR, Eq. 1

    The paper's Eq. 1 has sum_views = 1. Its code adds the means of the two views' losses, so 2, the default here:
    it matters beside weight decay and other losses, and for every optimizer that is not scale-free.

    Args:
      temperature: above 0.
      sum_views: 2 as in SimCLR's code, or 1 as in its paper.

    Raises:
      ValueError: for a temperature that is not positive, or an infinite or negative `sum_views`; when called, for a
        batch of one or views that do not match.

    Reference:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv 2002.05709);
      https://github.com/google-research/simclr/blob/383d4143fd8cf7879ae10f1046a9baeb753ff438/tf2/objective.py#L35
    """

    temperature: float = 0.1
    sum_views: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"NTXent needs temperature > 0, got {self.temperature}.")
        _check_weights(self, "sum_views")

    def __call__(self, first: Float[Array, "n d"], second: Float[Array, "n d"]) -> Float[Array, ""]:
        """Return the loss above of `first` and `second`, `(n, d)` each."""
        first, second = (_unit_rows(z) for z in _check("NTXent", first, second))
        both, n = jnp.concatenate([first, second]), len(first)
        positive = jnp.tile((first * second).sum(axis=1), 2)[:, None]
        same_image = jnp.tile(jnp.eye(n, dtype=bool), (2, 2))
        # As log(1 + sum_j exp(s_ij - s_i,p(i))) over the other images, which keeps the digits of a small loss.
        margins = jnp.where(same_image, -jnp.inf, (both @ both.T - positive) / self.temperature)
        return self.sum_views * nn.softplus(nn.logsumexp(margins, axis=1)).mean()


@dataclass(frozen=True)
class VICReg:
    """VICReg's loss: invariance, variance and covariance of two views' embeddings.

    A call takes the embeddings of two views, `(n, d)` each, and returns a scalar. With C the unbiased covariance of a
    view's rows, it is

        similarity * mean_{n,d} (z1 - z2)^2                                              Eq. 5
        + variance   * mean over views of  mean_i max(0, 1 - sqrt(C_ii + eps))           Eq. 1
        + covariance * sum over views of   sum_{i != j} C_ij^2 / d                       Eq. 4

    as in the reference.

    Args:
      similarity: weight of the invariance term.
      variance: weight of the variance term.
      covariance: weight of the covariance term.
      eps: added to variances under the square root.
      sum_variance_over_views: sum the variance term over the views, as solo-learn does, in place of the mean.
      covariance_per_pair: divide the covariance term by d (d - 1), as in Eq. 4 of the VCReg paper, in place of d.

    Raises:
      ValueError: for a negative or infinite weight; when called, for a batch of one or views that do not match.

    Reference:
      Bardes, Ponce & LeCun, "VICReg" (arXiv 2105.04906), Eq. 1-6;
      https://github.com/facebookresearch/vicreg/blob/4e12602fd495af83efd1631fbe82523e6db092e0/main_vicreg.py#L194
    """

    similarity: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    eps: float = 1e-4
    sum_variance_over_views: bool = False
    covariance_per_pair: bool = False

    def __post_init__(self) -> None:
        _check_weights(self, "similarity", "variance", "covariance", "eps")

    def __call__(self, first: Float[Array, "n d"], second: Float[Array, "n d"]) -> Float[Array, ""]:
        """Return the loss above of `first` and `second`, `(n, d)` each."""
        first, second = _check("VICReg", first, second)
        d = first.shape[1]
        hinges = pairs = jnp.zeros((), first.dtype)
        for view in (first, second):
            c = covariance(view)
            hinges += nn.relu(1.0 - jnp.sqrt(jnp.diagonal(c) + self.eps)).mean()
            pairs += _off_diagonal_squares(c)
        spread = hinges if self.sum_variance_over_views else hinges / 2
        correlated = pairs / max(d * (d - 1) if self.covariance_per_pair else d, 1)
        return self.similarity * ((first - second) ** 2).mean() + self.variance * spread + self.covariance * correlated


@dataclass(frozen=True)
class BarlowTwins:
    """Barlow Twins' loss: the cross-correlation of two views' embeddings is to be the identity.

    A call takes the embeddings of two views, `(n, d)` each, and returns a scalar. With y the columns of z less their
    mean, over sqrt(biased variance + eps), and R = y1' y2 / n (Eq. 2), it is

        scale * ( sum_i (R_ii - 1)^2 + redundancy * sum_{i != j} R_ij^2 )               Eq. 1

    Args:
      redundancy: weight of the elements off the diagonal.
      scale: of the whole loss; 1 in the reference, 0.025 or 0.1 in solo-learn.
      eps: added to variances under the square root.

    Raises:
      ValueError: for a negative or infinite weight; when called, for a batch of one or views that do not match.

    Reference:
      Zbontar et al., "Barlow Twins" (arXiv 2103.03230), Eq. 1-2;
      https://github.com/facebookresearch/barlowtwins/blob/8e8d284ca0bc02f88b92328e53f9b901e86b4a3c/main.py#L187
      There each GPU normalises its own rows and the correlations are averaged; here, as in the paper, all rows do
      together.
    """

    redundancy: float = 0.0051
    scale: float = 1.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_weights(self, "redundancy", "scale", "eps")

    def __call__(self, first: Float[Array, "n d"], second: Float[Array, "n d"]) -> Float[Array, ""]:
        """Return the loss above of `first` and `second`, `(n, d)` each."""
        first, second = (_standardize(z, self.eps) for z in _check("BarlowTwins", first, second))
        correlation = first.T @ second / len(first)
        own = ((jnp.diagonal(correlation) - 1.0) ** 2).sum()
        return self.scale * (own + self.redundancy * _off_diagonal_squares(correlation))


def _check(name: str, first: Array, second: Array) -> tuple[Array, Array]:
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2 or first.shape[1] < 1:
        raise ValueError(
            f"{name} needs the embeddings (n, d) of two views of the same n >= 2 images, got {first.shape} and "
            f"{second.shape}. Take larger batches, and one projector for both views."
        )
    return first.astype(statistics_dtype(first)), second.astype(statistics_dtype(second))


def _check_weights(loss: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(loss, name) < math.inf:
            raise ValueError(f"{type(loss).__name__} needs {name} >= 0, got {getattr(loss, name)}.")


def _unit_rows(z: Array) -> Array:
    """Rows over their length; the bound is TensorFlow's `l2_normalize`, which SimCLR calls."""
    return z / jnp.sqrt(jnp.maximum((z**2).sum(axis=1, keepdims=True), 1e-12))


def _standardize(z: Array, eps: float) -> Array:
    centred = less(z, mean_of(z))
    return centred / jnp.sqrt((centred**2).mean(axis=0, keepdims=True) + eps)


def _off_diagonal_squares(c: Array) -> Array:
    return jnp.where(jnp.eye(len(c), dtype=bool), 0.0, c**2).sum()
