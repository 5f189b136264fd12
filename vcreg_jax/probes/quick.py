"""Probes without iterations, cheap enough to watch a pretraining: weighted nearest neighbours, and ridge regression.

Neither stands in a table of the paper; both rank checkpoints much as the linear probe does.

Shapes: n training rows, m rows to predict, d features, k classes, s strengths.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from vcreg_jax.probes.lbfgs import dot
from vcreg_jax.statistics import less, mean_of

ROWS = 1024  # that are compared with all training rows at a time


@functools.partial(jax.jit, static_argnames=("num_classes", "neighbours"))
def knn(
    train: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
    features: Float[ArrayLike, "m d"],
    num_classes: int,
    neighbours: int = 20,
    temperature: Float[ArrayLike, ""] = 0.07,
) -> Int[Array, " m"]:
    """Predict by nearest neighbours: the class with the largest sum of exp(cosine / temperature) over them.

    Args:
      train: features to compare with, `(n, d)`; rows of zeros are at cosine 0 to all.
      labels: class indices, `(n,)`.
      features: to predict, `(m, d)`.
      num_classes: k.
      neighbours: how many training rows vote, the nearest by cosine.
      temperature: above 0.

    Returns:
      Class indices `(m,)`.

    Raises:
      ValueError: for fewer than one neighbour, or more than there are training rows.

    Reference:
      Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978), section
      3.4, with 20 neighbours as in DINO (arXiv 2104.14294).
    """
    train, labels, features = _unit(train), jnp.asarray(labels), _unit(features)
    if not 1 <= neighbours <= len(train):
        raise ValueError(f"neighbours must lie in 1..{len(train)}, the training rows, got {neighbours}.")

    def vote(row: Array) -> Array:
        cosines, nearest = lax.top_k(dot("nd,d->n", train, row), neighbours)
        weights = jnp.exp((cosines - cosines[0]) / temperature)
        return jnp.zeros(num_classes, weights.dtype).at[labels[nearest]].add(weights).argmax()

    return lax.map(vote, features, batch_size=ROWS)


@functools.partial(jax.jit, static_argnames="num_classes")
def ridge(
    train: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
    features: Float[ArrayLike, "m d"],
    num_classes: int,
    l2: Float[ArrayLike, " s"] | Sequence[Any],
) -> Int[Array, "s m"]:
    """Predict by a linear map fitted by least squares: the class with the largest output, at every strength.

    With x and y centred, y the labels as rows of 0 and 1, W = (x'x + l2)^-1 x'y minimizes |x W - y|^2 + l2 |W|^2, the
    bias unpenalised. One eigendecomposition serves all strengths, and it is that of x x' where rows are the fewer.
    Of a class without training rows the output is 0 everywhere.

    Args:
      train: x, `(n, d)`.
      labels: class indices, `(n,)`.
      features: to predict, `(m, d)`.
      num_classes: k.
      l2: the strengths `(s,)`, above 0.

    Returns:
      Class indices `(s, m)`.
    """
    x, rows = _wide(train), _wide(features)
    onehot = jax.nn.one_hot(jnp.asarray(labels), num_classes, dtype=x.dtype)
    mean, share = mean_of(x), onehot.mean(axis=0, keepdims=True)
    x, y, rows = less(x, mean), onehot - share, less(rows, mean)
    strengths = jnp.atleast_1d(jnp.asarray(l2, x.dtype))
    by_rows = x.shape[0] < x.shape[1]
    values, vectors = jnp.linalg.eigh(dot("nd,md->nm", x, x) if by_rows else dot("nd,ne->de", x, x))
    # x x' and x'x share their eigenvalues, and (x'x + l2)^-1 x' = x' (x x' + l2)^-1.
    left = dot("md,nd->mn", rows, x) if by_rows else rows
    right = y if by_rows else dot("nd,nk->dk", x, y)
    left, right = dot("mn,nj->mj", left, vectors), dot("nj,nk->jk", vectors, right)

    def predict(strength: Array) -> Array:
        inverse = 1 / (jnp.maximum(values, 0) + strength)
        return (dot("mj,jk->mk", left * inverse[None], right) + share).argmax(axis=-1)

    return lax.map(predict, strengths)


def _wide(rows: ArrayLike) -> Array:
    rows = jnp.asarray(rows)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def _unit(rows: ArrayLike) -> Array:
    rows = _wide(rows)
    norms = jnp.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    return rows / jnp.where(norms > 0, norms, 1)
