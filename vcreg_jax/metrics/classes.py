"""How features lie around their classes' means: neural collapse by CDNV (Eq. 8) and by the nearest class mean (Eq. 9).

Statistics are float32, or float64 for float64 features. Labels outside of 0..k-1 mark rows that do not count, such as
padding. What merges does so in the arrays' own dtype: with NumPy arrays in float64, sums over many batches are float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Num

from vcreg_jax.regularizers.statistics import statistics_dtype

_ROWS = 1024  # rows whose distances to all classes are held at once


def correct(logits: Float[Array, "*batch k"], labels: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """Tell whether the largest logit is the label's (top-1), per example.

    Args:
      logits: `(*batch, k)`.
      labels: class indices, `(*batch,)`.

    Returns:
      Booleans `(*batch,)`.
    """
    return logits.argmax(axis=-1) == labels


class ClassMeans(NamedTuple):
    """How many rows each class has, and their mean (0 for none).

    Attributes:
      counts: `(k,)`.
      means: `(k, d)`.
    """

    counts: Num[Array | np.ndarray, " k"]
    means: Float[Array | np.ndarray, "k d"]

    def merge(self, other: "ClassMeans") -> "ClassMeans":
        """Return those of both sets of rows together."""
        counts = self.counts + other.counts
        share = other.counts / (counts + (counts == 0))
        return ClassMeans(counts, self.means + (other.means - self.means) * share[:, None])


class ClassSpread(NamedTuple):
    """Sums over the rows h of each class around a centre c.

    Attributes:
      counts: of 1, `(k,)`.
      squares: of |h - c|^2, `(k,)`.
      residuals: of h - c, `(k, d)`.
    """

    counts: Num[Array | np.ndarray, " k"]
    squares: Float[Array | np.ndarray, " k"]
    residuals: Float[Array | np.ndarray, "k d"]

    def merge(self, other: "ClassSpread") -> "ClassSpread":
        """Return those of both sets of rows together, around the same centres."""
        return ClassSpread(*(a + b for a, b in zip(self, other, strict=True)))


def class_means(features: Float[Array, "n d"], labels: Int[Array, " n"], num_classes: int) -> ClassMeans:
    """Compute the mean of each class, in two passes over the rows, as differences from one of them.

    Args:
      features: `(n, d)`.
      labels: class indices `(n,)`; rows outside of 0..k-1 do not count.
      num_classes: k.

    Returns:
      `ClassMeans` in float32 or wider; those of several batches `merge`.
    """
    counted = (labels >= 0) & (labels < num_classes)
    near = features[jnp.argmax(counted)].astype(statistics_dtype(features))
    around = jnp.broadcast_to(jnp.where(counted.any(), near, 0.0)[None], (num_classes, len(near)))
    first = _means(features, labels, num_classes, around)
    return _means(features, labels, num_classes, jnp.asarray(first.means))


def _means(features: Array, labels: Array, num_classes: int, around: Array) -> ClassMeans:
    counts, _, residuals = class_spread(features, labels, around)
    means = around + residuals / jnp.maximum(counts, 1)[:, None]
    return ClassMeans(counts, jnp.where(counts[:, None] > 0, means, 0.0))


def class_spread(
    features: Float[Array, "n d"], labels: Int[Array, " n"], centres: Float[Array | np.ndarray, "k d"]
) -> ClassSpread:
    """Compute the second pass: sums around `centres`, which may be the classes' means or anything near them.

    Args:
      features: `(n, d)`.
      labels: class indices `(n,)`; rows outside of 0..k-1 do not count.
      centres: `(k, d)`.

    Returns:
      `ClassSpread` in float32 or wider; those of several batches `merge`.
    """
    k, dtype = len(centres), statistics_dtype(features)
    counted = (labels >= 0) & (labels < k)
    place = jnp.where(counted, labels, k)  # of what does not count: dropped
    away = features.astype(dtype) - jnp.asarray(centres, dtype)[jnp.where(counted, labels, 0)]
    values = (jnp.ones(len(labels), dtype), jnp.sum(away**2, axis=-1), away)
    return ClassSpread(*(jax.ops.segment_sum(value, place, k + 1)[:k] for value in values))


def cdnv(features: Float[Array, "n d"], labels: Int[Array, " n"], num_classes: int) -> Float[Array, ""]:
    """Compute class-distance normalized variance, the mean of Eq. 8 over all pairs of classes i < j that have rows:

        (Var_i + Var_j) / (2 |mu_i - mu_j|^2),    Var_c = mean over the rows h of class c of |h - mu_c|^2

    It does not change when features are moved, rotated or scaled. Two classes with the same mean make it infinite.
    Memory: O(k d) beside the features, also for 1,000 classes.

    Args:
      features: `(n, d)`.
      labels: class indices `(n,)`; rows outside of 0..k-1 do not count.
      num_classes: k, at least 2.

    Returns:
      A scalar; small for collapsed classes.

    Raises:
      ValueError: for fewer than two classes.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> features, labels = jnp.array([[0.0], [2.0], [10.0], [12.0]]), jnp.array([0, 0, 1, 1])
      >>> round(float(vc.metrics.cdnv(features, labels, num_classes=2)), 4)  # (1 + 1) / (2 * 10^2)
      0.01

    Reference:
      The VCReg paper (arXiv 2306.13292), Eq. 8; Galanti et al., "On the Role of Neural Collapse in Transfer Learning"
      (arXiv 2112.15121), whose code takes the variance summed over dimensions and divided by the class's rows, as here.
    """
    means = class_means(features, labels, num_classes).means
    return cdnv_of(class_spread(features, labels, means), means)


def cdnv_of(spread: ClassSpread, centres: Float[Array | np.ndarray, "k d"]) -> Float[Array, ""]:
    """Compute `cdnv` from the sums of `class_spread` around the same centres.

    That the centres are not exactly the means is corrected for: Var_c = squares / n - |residuals / n|^2.

    Args:
      spread: of all batches, merged.
      centres: `(k, d)`, around which it was taken.

    Returns:
      A scalar, as `cdnv`.

    Raises:
      ValueError: for fewer than two classes.
    """
    if len(centres) < 2:
        raise ValueError(f"CDNV compares pairs of classes, got {len(centres)} class(es).")
    divisor = spread.counts + (spread.counts == 0)
    shift = spread.residuals / divisor[:, None]
    own = (spread.counts > 0)[:, None]
    middle = (own * centres).sum(axis=0) / (own.sum() + (own.sum() == 0))  # seen from there digits are exact
    means = jnp.asarray((centres - middle[None]) + shift)  # in the arrays' own dtype: NumPy's may be wider than JAX's
    variance = jnp.maximum(jnp.asarray(spread.squares / divisor - (shift**2).sum(axis=-1)), 0)
    present = jnp.asarray(spread.counts) > 0

    def pairs_of(i: Array) -> Array:
        distance = jnp.sum((means - means[i][None]) ** 2, axis=-1)
        counted = present & present[i] & (jnp.arange(len(means)) > i)
        return jnp.sum(jnp.where(counted, (variance + variance[i]) / (2 * jnp.where(counted, distance, 1)), 0))

    num_pairs = present.sum() * (present.sum() - 1) / 2
    return lax.map(pairs_of, jnp.arange(len(means))).sum() / num_pairs


def nearest_class(features: Float[Array, "n d"], means: ClassMeans) -> Int[Array, " n"]:
    """Find the class whose mean is nearest (Eq. 9), of those that have rows; the first of equally near ones.

    Args:
      features: `(n, d)`.
      means: of the classes.

    Returns:
      Class indices `(n,)`.
    """
    dtype = statistics_dtype(features)
    counts, centres = jnp.asarray(means.counts, dtype), jnp.asarray(means.means, dtype)
    origin = counts @ centres / jnp.maximum(counts.sum(), 1)  # about which products lose least
    centres = centres - origin[None]
    squares = jnp.where(counts > 0, jnp.sum(centres**2, axis=-1), jnp.inf)

    def of_row(row: Array) -> Array:
        products = jnp.matmul(centres, row.astype(dtype) - origin, precision=lax.Precision.HIGHEST)
        return jnp.argmin(squares - 2 * products)

    return lax.map(of_row, features, batch_size=_ROWS)


def ncc_agreement(features: Float[Array, "n d"], logits: Float[Array, "n k"], means: ClassMeans) -> Float[Array, ""]:
    """Compute the share of rows for which the nearest class mean is what the network predicts: collapse's NC4.

    The VCReg paper does not say which of this and `ncc_accuracy` its Table 6 holds, nor whether on training or
    validation images.

    Args:
      features: `(n, d)`.
      logits: `(n, k)`.
      means: of the classes.

    Returns:
      A scalar in 0..1.

    Reference:
      Papyan, Han & Donoho, "Prevalence of neural collapse" (arXiv 2008.08186).
    """
    return jnp.mean(nearest_class(features, means) == logits.argmax(axis=-1))


def ncc_accuracy(features: Float[Array, "n d"], labels: Int[Array, " n"], means: ClassMeans) -> Float[Array, ""]:
    """Compute the share of rows for which the nearest class mean is the label's.

    Args:
      features: `(n, d)`.
      labels: class indices `(n,)`.
      means: of the classes.

    Returns:
      A scalar in 0..1.
    """
    return jnp.mean(nearest_class(features, means) == labels)
