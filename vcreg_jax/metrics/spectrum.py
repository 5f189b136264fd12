"""How many directions features use, and whether two layers use the same ones."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from vcreg_jax.regularizers.statistics import less, mean_of, statistics_dtype


def singular_values(features: Float[Array, "n d"]) -> Float[Array, " min_n_d"]:
    """Compute the standard deviations along the principal axes: singular values of the centred features / sqrt(n - 1).

    Args:
      features: `(n, d)`.

    Returns:
      `(min(n, d),)`, largest first, in the features' unit.
    """
    x = less(features, mean_of(features))
    return jnp.linalg.svd(x, compute_uv=False) / jnp.sqrt(max(features.shape[0] - 1, 1))


def singular_values_of(covariance: Float[Array | np.ndarray, "d d"]) -> Float[Array, " d"]:
    """Compute `singular_values` from the covariance, all d of them.

    A covariance knows small directions less well than the features do: eigenvalues below 10 units of roundoff of the
    largest, in float32 singular values below a thousandth, are 0.

    Args:
      covariance: `(d, d)`.

    Returns:
      `(d,)`, largest first.
    """
    eigenvalues = jnp.linalg.eigvalsh(jnp.asarray(covariance))[::-1]
    threshold = 10 * jnp.finfo(eigenvalues.dtype).eps * jnp.abs(eigenvalues).max()
    return jnp.sqrt(jnp.where(eigenvalues > threshold, eigenvalues, 0.0))


def entropy_rank(values: Float[Array | np.ndarray, " m"]) -> Float[Array, ""]:
    """Compute exp(entropy of p), p being `values` over their sum; 1 where all are 0.

    Args:
      values: not negative, `(m,)`.

    Returns:
      A scalar in 1..m.
    """
    s = jnp.asarray(values)
    p = s / jnp.maximum(s.sum(), jnp.finfo(s.dtype).tiny)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0)))


def effective_rank(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """Compute exp(entropy of p), p being the singular values of the centred features over their sum.

    `rankme` is the same without centring.

    Args:
      features: `(n, d)`.

    Returns:
      A scalar between 1 and min(n - 1, d); of constant features 1 by convention.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> features = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> round(float(vc.metrics.effective_rank(features)), 4)
      2.0

    Reference:
      Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    return entropy_rank(singular_values(features))


def rankme(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """Compute RankMe: as `effective_rank`, of the features as they are, not centred.

    Args:
      features: `(n, d)`.

    Returns:
      A scalar between 1 and min(n, d).

    Reference:
      Garrido et al., "RankMe" (arXiv 2210.02885), Eq. 1, but for its 1e-7, which here is the entropy's limit
      0 log 0 = 0.
    """
    return entropy_rank(jnp.linalg.svd(features, compute_uv=False))


def linear_cka(x: Float[Array, "n a"], y: Float[Array, "n b"]) -> Float[Array, ""]:
    """Compute linear centred kernel alignment of two layers' features of the same n inputs:

        |X'Y|_F^2 / (|X'X|_F |Y'Y|_F),    X and Y centred

    Args:
      x: `(n, a)`.
      y: `(n, b)`.

    Returns:
      A scalar in 0..1: 1 for features that are equal up to rotation, translation and scale; NaN where one is constant.

    Reference:
      Kornblith et al., "Similarity of Neural Network Representations Revisited" (arXiv 1905.00414), Eq. 3 with linear
      kernels.
    """
    dtype = jnp.promote_types(statistics_dtype(x), statistics_dtype(y))
    joint = jnp.concatenate([x.astype(dtype), y.astype(dtype)], axis=1)
    joint = less(joint, mean_of(joint))
    return linear_cka_of(jnp.matmul(joint.T, joint, precision=lax.Precision.HIGHEST), x.shape[1])


def linear_cka_of(covariance: Float[Array | np.ndarray, "d d"], width: int) -> Float[Array, ""]:
    """Compute `linear_cka` from the joint covariance, or any multiple of it.

    Args:
      covariance: `(d, d)`, of `[x, y]`, such as the scatter of `moments`.
      width: of x.

    Returns:
      A scalar, as `linear_cka`.
    """
    c = jnp.asarray(covariance)
    norm = jnp.linalg.norm
    return norm(c[:width, width:]) ** 2 / (norm(c[:width, :width]) * norm(c[width:, width:]))
