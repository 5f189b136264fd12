"""Measures of logits and features: arrays in, arrays and scalars out.

Those of a whole data set that does not fit into memory are made of sums over batches that merge: `class_means` in a
first pass and `class_spread` around them in a second one give `cdnv_of` and the nearest class, `moments` in one pass
the covariance and all that follows from it.
"""

from vcreg_jax.metrics.classes import (
    ClassMeans,
    ClassSpread,
    cdnv,
    cdnv_of,
    class_means,
    class_spread,
    correct,
    ncc_accuracy,
    ncc_agreement,
    nearest_class,
)
from vcreg_jax.metrics.moments import LayerStatistics, Moments, covariance_statistics, moments
from vcreg_jax.metrics.spectrum import (
    effective_rank,
    entropy_rank,
    linear_cka,
    linear_cka_of,
    rankme,
    singular_values,
    singular_values_of,
)

__all__ = [
    "ClassMeans",
    "ClassSpread",
    "LayerStatistics",
    "Moments",
    "cdnv",
    "cdnv_of",
    "class_means",
    "class_spread",
    "correct",
    "covariance_statistics",
    "effective_rank",
    "entropy_rank",
    "linear_cka",
    "linear_cka_of",
    "moments",
    "ncc_accuracy",
    "ncc_agreement",
    "nearest_class",
    "rankme",
    "singular_values",
    "singular_values_of",
]
