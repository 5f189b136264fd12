"""What one layer's features look like to the regularizer: is it collapsing?"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vcreg_jax.metrics import covariance_statistics, entropy_rank, singular_values_of
from vcreg_jax.statistics import (
    check_axis_name,
    explicit_sharding,
    mean_and_covariance,
    num_samples,
    sample_axes,
)


class Diagnosis(NamedTuple):
    """Of one layer's features, over all samples of a batch; scalars."""

    under_unit_std: Float[Array, ""]  # share of features that Eq. 3 pulls up: sqrt(C_ii + eps) < 1
    mean_std: Float[Array, ""]  # of sqrt(C_ii), in the features' unit
    off_diagonal_rms: Float[Array, ""]  # root of the mean square of C_ij, i != j
    clipped: Float[Array, ""]  # share of C_ij, i != j, beyond delta (Eq. 7); 0 without a delta
    effective_rank: Float[Array, ""]  # between 1 and d, of the centred features


def diagnose(
    h: Float[Array, "*samples d"],
    *,
    delta: float | None = None,
    eps: float = 1e-4,
    axis_name: str | tuple[str, ...] | None = None,
) -> Diagnosis:
    """The `Diagnosis` of features `h` of shape `(*samples, d)`, every leading axis counting as samples.

    `delta`, `eps` and `axis_name` are those of the `VCReg` whose share of work is asked for: with an axis name of an
    enclosing pmap, vmap or shard_map it is the diagnosis of the rows on all its devices. Costs one product x'x and the
    eigenvalues of one d x d matrix; over a sharded batch one all-reduce. Statistics are float32 or wider.

    Raises:
      ValueError: for fewer than two axes or two samples, for what is no floating-point array, or for an axis name that
        is not bound.
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
