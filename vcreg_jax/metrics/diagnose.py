"""What one layer's features look like to the regularizer: is it collapsing?"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vcreg_jax.metrics import covariance_statistics, entropy_rank, singular_values_of
from vcreg_jax.regularizers.statistics import (
    check_axis_name,
    explicit_sharding,
    mean_and_covariance,
    num_samples,
    sample_axes,
)


class Diagnosis(NamedTuple):
    """What one layer's features look like to the regularizer, over all samples of a batch.

    Attributes:
      under_unit_std: share of features that Eq. 3 pulls up, sqrt(C_ii + eps) < 1; a scalar, as the others.
      mean_std: mean of sqrt(C_ii), in the features' unit.
      off_diagonal_rms: root of the mean square of C_ij, i != j.
      clipped: share of C_ij, i != j, beyond delta (Eq. 7); 0 without a delta.
      effective_rank: between 1 and d, of the centred features; see `metrics.effective_rank`.
    """

    under_unit_std: Float[Array, ""]
    mean_std: Float[Array, ""]
    off_diagonal_rms: Float[Array, ""]
    clipped: Float[Array, ""]
    effective_rank: Float[Array, ""]


def diagnose(
    h: Float[Array, "*samples d"],
    *,
    delta: float | None = None,
    eps: float = 1e-4,
    axis_name: str | tuple[str, ...] | None = None,
) -> Diagnosis:
    """Measure whether a layer's features collapse: spread, correlation, clipping and rank.

    Every leading axis counts as samples. It costs one product x'x and the eigenvalues of one d x d matrix; over a
    sharded batch one all-reduce. Statistics are float32 or wider.

    Args:
      h: features `(*samples, d)`, of a floating dtype.
      delta: of the `VCReg` whose share of work is asked for.
      eps: of the same `VCReg`.
      axis_name: of the same `VCReg`: of a pmap, vmap or shard_map, of whose devices all rows count.

    Returns:
      A `Diagnosis` of scalars.

    Raises:
      ValueError: for fewer than two axes or two samples, for what is no floating-point array, or for an axis name that
        is not bound.

    Examples:
      >>> import jax
      >>> import vcreg_jax as vc
      >>> h = jax.random.normal(jax.random.key(0), (64, 8)) / 2
      >>> found = vc.diagnose(h)
      >>> float(found.under_unit_std)
      1.0

    Reference:
      The VCReg paper (arXiv 2306.13292), Eq. 3 and 7.
    """
    check_axis_name("diagnose", axis_name)
    axes = sample_axes(h, axis_name)
    if h.ndim < 2 or not h.size or num_samples(h, axes) < 2 or not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(
            f"diagnose needs floating-point features of shape (*samples, d) with at least two samples, got "
            f"{h.dtype}{list(h.shape)}."
        )
    if axis_name is not None or (explicit := explicit_sharding(h)) is None:
        return diagnose_covariance(mean_and_covariance(h, axes)[1], delta=delta, eps=eps)
    mesh, spec = explicit

    def covariance(h: Array) -> Array:
        return mean_and_covariance(h, samples_spec=PartitionSpec(*spec[:-1]))[1]

    with jax.sharding.use_abstract_mesh(mesh):
        gathered = cast(Array, jax.sharding.auto_axes(covariance, out_sharding=PartitionSpec())(h))
    return diagnose_covariance(gathered, delta=delta, eps=eps)


def diagnose_covariance(c: Float[Array, "d d"], *, delta: float | None = None, eps: float = 1e-4) -> Diagnosis:
    """`diagnose` where the covariance is already at hand."""
    variances = jnp.diagonal(c)
    beyond = jnp.zeros((), c.dtype)
    if delta is not None and len(c) > 1:
        far = (jnp.abs(c) > delta) & ~jnp.eye(len(c), dtype=bool)
        beyond = far.sum().astype(c.dtype) / (len(c) * (len(c) - 1))
    return Diagnosis(
        under_unit_std=jnp.mean(jnp.sqrt(variances + eps) < 1.0, dtype=c.dtype),
        mean_std=jnp.sqrt(jnp.maximum(variances, 0.0)).mean(),
        off_diagonal_rms=covariance_statistics(c).off_diagonal_rms,
        clipped=beyond,
        effective_rank=entropy_rank(singular_values_of(c)),
    )
