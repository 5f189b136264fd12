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
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from vcreg_jax.probes.lbfgs import dot
from vcreg_jax.regularizers.statistics import less, mean_of

ROWS = 1024  # that are compared with all training rows at a time


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
      ValueError: for arrays whose shapes do not fit, labels out of range, fewer than one neighbour, or more than there
        are training rows.

    Reference:
      Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978), section
      3.4, with 20 neighbours as in DINO (arXiv 2104.14294).
    """
    train, labels, features = _check(train, labels, features, num_classes)
    if not 1 <= neighbours <= len(train):
        raise ValueError(f"neighbours must lie in 1..{len(train)}, the training rows, got {neighbours}.")
    return _vote(train, labels, features, temperature, num_classes, neighbours)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _vote(
    train: Array, labels: Array, features: Array, temperature: ArrayLike, num_classes: int, neighbours: int
) -> Array:
    train, features = _unit(train), _unit(features)

    def vote(row: Array) -> Array:
        cosines, nearest = lax.top_k(dot("nd,d->n", train, row), neighbours)
        weights = jnp.exp((cosines - cosines[0]) / temperature)
        return jnp.zeros(num_classes, weights.dtype).at[labels[nearest]].add(weights).argmax()

    return lax.map(vote, features, batch_size=ROWS)


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

    Raises:
      ValueError: for arrays whose shapes do not fit, and labels out of range.
    """
    return _least_squares(*_check(train, labels, features, num_classes), jnp.asarray(l2), num_classes)


@functools.partial(jax.jit, static_argnums=4)
def _least_squares(train: Array, labels: Array, features: Array, l2: Array, num_classes: int) -> Array:
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


def _check(train: ArrayLike, labels: ArrayLike, features: ArrayLike, num_classes: int) -> tuple[Array, Array, Array]:
    train, labels, features = jnp.asarray(train), jnp.asarray(labels), jnp.asarray(features)
    widths = train.ndim == features.ndim == 2 and train.shape[1] == features.shape[1] > 0
    if not widths or labels.shape != train.shape[:1] or not len(train):
        raise ValueError(
            "Needed: training rows (n, d), their labels (n,) and rows to predict (m, d), got "
            f"{train.shape}, {labels.shape} and {features.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers in 0..{num_classes - 1}, got {labels.dtype}.")
    if not isinstance(labels, Tracer) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}. Renumber them, or "
            "set num_classes."
        )
    return train, labels, features


def _wide(rows: ArrayLike) -> Array:
    rows = jnp.asarray(rows)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def _unit(rows: ArrayLike) -> Array:
    rows = _wide(rows)
    norms = jnp.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    return rows / jnp.where(norms > 0, norms, 1)
