"""How the penalty of some rows becomes that of a batch: in groups, on several devices, on whatever mesh.

A regularizer defines the penalty of some rows and its gradient, counting the rows on other shards along `axes`. It is
called once for the batch, or once for each group.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from vcreg_jax.regularizers.add_gradient import add_gradient
from vcreg_jax.regularizers.statistics import (
    centred,
    check_axis_name,
    explicit_sharding,
    in_groups,
    less,
    map_groups,
    mean_of,
    moments,
    num_samples,
    num_shards,
    of_all_devices,
    projected,
    sample_axes,
    shape_in_groups,
    statistics_dtype,
    vary_with,
)

_Regularizer = TypeVar("_Regularizer", bound="BatchRegularizer")


class BatchRegularizer:
    """A regularizer that defines the penalty of some rows and its gradient, and gets those of a batch from here.

    A batch may be in groups, masked, or spread over devices; a subclass need not know.
    """

    weight: float | Array
    scope: Literal["global"] | int  # whose statistics: the whole batch's, or each of k groups' of rows
    axis_name: str | tuple[str, ...] | None  # of a pmap, vmap or shard_map over whose devices the batch is split

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """The penalty written out, which JAX may differentiate."""
        raise NotImplementedError

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """Its gradient, one row a sample, in float32 or wider; `samples_spec` as in `mean_and_covariance`."""
        raise NotImplementedError

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`h` itself; the backward pass adds `gradient(h)`."""
        check_features(self, h)
        return add_gradient(self, h)

    def scaled(self: _Regularizer, weight: float | Array) -> _Regularizer:
        """The same regularizer times `weight`, for gradient accumulation and loss scaling; see `VCReg.scaled`."""
        return replace(cast(Any, self), weight=self.weight * weight)

    def penalty(
        self, h: Float[Array, "*samples d"], /, keep: Bool[Array, "*samples"] | None = None
    ) -> Float[Array, ""]:
        """The penalty that the class describes, in float32 or wider; with `keep` of the rows where it is true alone."""
        if (explicit := explicit_sharding(h)) is None:
            return _penalty(self, h, keep)
        with jax.sharding.use_abstract_mesh(explicit[0]):
            # `self` as an argument: traced weights may lie on the explicit mesh, too.
            return cast(Any, jax.sharding.auto_axes(_penalty, out_sharding=PartitionSpec()))(self, h, keep)

    def gradient(
        self, h: Float[Array, "*samples d"], /, keep: Bool[Array, "*samples"] | None = None
    ) -> Float[Array, "*samples d"]:
        """The gradient of `penalty(h, keep)` in closed form, in float32 or wider.

        With `axis_name`, of the sum of all devices' equal penalties.
        """
        if (split := explicit_sharding(h)) is None:
            return _gradient(self, h, keep)
        # Explicit axes leave a contraction over a split axis to the author; here the compiler may choose.
        mesh, spec = split
        of_samples = functools.partial(_gradient, samples_spec=PartitionSpec(*spec[:-1]))
        with jax.sharding.use_abstract_mesh(mesh):
            return cast(Any, jax.sharding.auto_axes(of_samples, out_sharding=spec))(self, h, keep)


def check(name: str, scope: object, axis_name: object, **weights: object) -> None:
    """Refuses what these fields of the regularizer `name` cannot be.

    Raises:
      ValueError: for a negative weight, an unknown scope or a wrong `axis_name`.
    """
    for field, weight in weights.items():
        if isinstance(weight, int | float) and not 0 <= weight < math.inf:
            raise ValueError(f"{name} needs {field} >= 0, got {weight}.")
    if scope != "global" and not (isinstance(scope, int) and not isinstance(scope, bool) and scope >= 1):
        raise ValueError(f'{name} needs scope="global" or a number of groups >= 1, got {scope!r}.')
    check_axis_name(name, axis_name)


def check_features(reg: BatchRegularizer, h: Array) -> None:
    """Refuses what is no batch of features, or does not divide into the groups of `reg`.

    Raises:
      ValueError: for integers, fewer than two axes, no features, or a leading axis that `scope` does not divide.
    """
    name = type(reg).__name__
    if h.ndim < 2 or h.shape[-1] == 0 or not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(
            f"{name} needs floating-point features of shape (*samples, d) with at least two axes, got "
            f"{h.dtype}{list(h.shape)}."
        )
    if reg.scope == "global" or not all(isinstance(size, int) for size in h.shape):
        return
    try:
        axes = sample_axes(h, reg.axis_name)
    except ValueError:
        return  # an axis that is not bound matters to who differentiates: evaluation goes without
    shape_in_groups(h, cast(int, reg.scope), axes)


def _penalty(reg: BatchRegularizer, h: Array, keep: Array | None) -> Array:
    h, axes = _without_others(h, keep), sample_axes(h, reg.axis_name)
    if reg.scope == "global":
        found = reg.penalty_of(h, keep, axes)
    else:
        groups = in_groups(h, reg.scope, axes)
        kept = None if keep is None else keep.reshape(groups.shape[:-1])
        mean = jax.vmap(lambda rows, kept: reg.penalty_of(rows, kept, ()))(groups, kept).mean()
        found = lax.pmean(mean, axes) if axes else mean
    return found if reg.axis_name is None else of_all_devices(found, h, axes)


def _gradient(reg: BatchRegularizer, h: Array, keep: Array | None, samples_spec: PartitionSpec | None = None) -> Array:
    h, axes = _without_others(h, keep), sample_axes(h, reg.axis_name)
    times = 1.0 if reg.axis_name is None else float(num_shards(axes))
    if reg.scope == "global":
        found = reg.gradient_of(h, keep, axes, samples_spec)
        return found if times == 1.0 else times * found

    def of_group(rows: Array, kept: Array | None = None) -> Array:
        return reg.gradient_of(rows, kept, (), PartitionSpec()) * (times / cast(int, reg.scope))

    return map_groups(of_group, h, reg.scope, samples_spec, axes, keep)


def _without_others(h: Array, keep: Array | None) -> Array:
    """Zeros in the place of rows that do not count, which may be anything, NaN included."""
    return h if keep is None else jnp.where(keep[..., None], h, 0)


def count_of(h: Array, keep: Array | None, axes: tuple[str, ...]) -> Any:
    """How many samples count, on all shards over `axes`, and at least 1: an int, with `keep` an array."""
    if keep is None:
        return max(num_samples(h, axes), 1)
    (own,) = vary_with(h, keep.sum(dtype=statistics_dtype(h)))
    return jnp.maximum(lax.psum(own, axes) if axes else own, 1)


def penalty_of_covariance(
    function: Callable[[Array], Array],
    h: Array,
    keep: Array | None,
    axes: tuple[str, ...],
    directions: Float[Array, "d k"] | None = None,
) -> Array:
    """`function` of the unbiased covariance, in the textbook form; 0 for fewer than two rows.

    With `directions`, of the covariance of the projections on them.
    """
    n, samples = count_of(h, keep, axes), tuple(range(h.ndim - 1))
    x = less(h, mean_of(h, keep, axes))
    x = x if keep is None else jnp.where(keep[..., None], x, 0.0)
    x = x if directions is None else projected(x, directions)
    scatter = lax.dot_general(x, x, ((samples, samples), ((), ())))
    scatter = lax.psum(scatter, axes) if axes else scatter
    return jnp.where(n > 1, function(scatter / jnp.maximum(n - 1, 1)), 0.0)


def gradient_of_covariance(
    function: Callable[[Array], Array],
    h: Array,
    keep: Array | None,
    axes: tuple[str, ...],
    samples_spec: PartitionSpec | None,
    directions: Float[Array, "d k"] | None = None,
) -> Array:
    """Its gradient, x M for M = 2 / (n - 1) times the gradient of `function`; at most one all-reduce.

    With directions S it is x S M S'.
    """
    if num_samples(h, axes) < 2:
        return jnp.zeros(h.shape, statistics_dtype(h))
    n, mean, cov = moments(h, axes, samples_spec, keep, directions)
    pull = jax.grad(function)(cov) * (2 / jnp.maximum(n - 1, 1))
    # Written out once: TPUs would compute it anew with every tile of rows that it is multiplied with.
    pull = lax.optimization_barrier(jnp.where(n > 1, pull, 0.0).astype(h.dtype))
    x = centred(h, mean)
    x = x if keep is None else jnp.where(keep[..., None], x, 0)
    if directions is None:
        return projected(x, pull)
    in_sketch = projected(projected(x, directions).astype(h.dtype), pull).astype(h.dtype)
    return projected(in_sketch, directions.T)
