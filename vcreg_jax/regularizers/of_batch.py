"""How the penalty of some rows becomes that of a batch: in groups, masked, on several devices, on whatever mesh.

A regularizer defines the penalty of some rows and its gradient, counting the rows on other shards along `axes`. It is
called once for the batch, or once for each group.
"""

import functools
import math
import warnings
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from vcreg_jax.regularizers.add_gradient import add_gradient
from vcreg_jax.regularizers.statistics import (
    check_axis_name,
    explicit_sharding,
    in_groups,
    map_groups,
    num_samples,
    num_shards,
    of_all_devices,
    sample_axes,
    shape_in_groups,
    statistics_dtype,
    vary_with,
)

_Regularizer = TypeVar("_Regularizer", bound="BatchRegularizer")


class BatchRegularizer:
    """A regularizer that defines the penalty of some rows and its gradient, and gets those of a batch from here.

    A batch may be in groups, masked, or spread over devices; a subclass need not know. It is a frozen dataclass.
    """

    weights: ClassVar[tuple[str, ...]] = ("weight",)  # names of the fields to which the penalty is proportional
    fewest_rows: ClassVar[int] = 2  # with fewer it adds nothing
    missing_for_one_feature: ClassVar[str | None] = None  # what it cannot add to a single feature
    scope: Literal["global"] | int  # whose statistics: the whole batch's, or each of k groups' of rows
    axis_name: str | tuple[str, ...] | None  # of a pmap, vmap or shard_map over whose devices the batch is split

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in self.weights:
            weight = getattr(self, field)
            if isinstance(weight, int | float) and not 0 <= weight < math.inf:
                raise ValueError(f"{name} needs {field} >= 0, got {weight}.")
        whole = isinstance(self.scope, int) and not isinstance(self.scope, bool) and self.scope >= 1
        if self.scope != "global" and not whole:
            raise ValueError(f'{name} needs scope="global" or a number of groups >= 1, got {self.scope!r}.')
        check_axis_name(name, self.axis_name)

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """The penalty written out, which JAX may differentiate."""
        raise NotImplementedError

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """Its gradient, one row a sample, in float32 or wider; `samples_spec` as in `mean_and_covariance`."""
        raise NotImplementedError

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """Return `h`; the backward pass adds `gradient(h)`."""
        self.check_features(h)
        return add_gradient(self, h)

    def scaled(self: _Regularizer, weight: float | Array) -> _Regularizer:
        """Return the same regularizer with all its terms times `weight`.

        With gradients summed over m micro-batches of a loss divided by m, use `scaled(1 / m)`; with a loss
        multiplied by S against underflow, `scaled(S)`. Micro-batch statistics are the micro-batch's own.

        Args:
          weight: a number or a traced scalar.
        """
        return replace(cast(Any, self), **{name: getattr(self, name) * weight for name in self.weights})

    def penalty(
        self, h: Float[Array, "*samples d"], /, keep: Bool[Array, "*samples"] | None = None
    ) -> Float[Array, ""]:
        """Return the penalty written out: the oracle of the backward pass, and what is logged.

        Args:
          h: features `(*samples, d)`, of a floating dtype.
          keep: which rows count, boolean `(*samples,)`; None counts all.

        Returns:
          A scalar in float32 or wider.
        """
        self.check_features(h)
        if (explicit := explicit_sharding(h)) is None:
            return _penalty(self, h, keep)
        with jax.sharding.use_abstract_mesh(explicit[0]):
            # `self` as an argument: traced weights may lie on the explicit mesh, too.
            return cast(Any, jax.sharding.auto_axes(_penalty, out_sharding=PartitionSpec()))(self, h, keep)

    def gradient(
        self, h: Float[Array, "*samples d"], /, keep: Bool[Array, "*samples"] | None = None
    ) -> Float[Array, "*samples d"]:
        """Return the gradient of `penalty(h, keep)` in closed form.

        With `axis_name` it is that of the sum over devices of their equal penalties, as `jax.grad(penalty)` is.

        Args:
          h: features `(*samples, d)`, of a floating dtype.
          keep: which rows count, boolean `(*samples,)`; None counts all.

        Returns:
          `(*samples, d)` in float32 or wider.
        """
        if (split := explicit_sharding(h)) is None:
            return _gradient(self, h, keep)
        # Explicit axes leave a contraction over a split axis to the author; here the compiler may choose.
        mesh, spec = split
        of_samples = functools.partial(_gradient, samples_spec=PartitionSpec(*spec[:-1]))
        with jax.sharding.use_abstract_mesh(mesh):
            return cast(Any, jax.sharding.auto_axes(of_samples, out_sharding=spec))(self, h, keep)

    def check_features(self, h: Array) -> None:
        """Refuse what is no batch of features, or does not divide into groups; warn of too few rows.

        Raises:
          ValueError: for integers, fewer than two axes, no features, or a leading axis that `scope` does not divide.
        """
        name = type(self).__name__
        if h.ndim < 2:
            raise ValueError(
                f"{name} needs features of shape (*samples, d) with at least two axes, got shape {h.shape}. "
                "Add a batch axis, or apply it before features are reduced."
            )
        if h.shape[-1] == 0:
            raise ValueError(f"{name} needs at least one feature, got shape {h.shape}.")
        if not jnp.issubdtype(h.dtype, jnp.floating):
            raise ValueError(f"{name} needs floating-point features, got {h.dtype}. Cast them first.")
        if not all(isinstance(size, int) for size in h.shape):
            return  # a program exported for any batch: there is no number to judge
        try:
            axes = sample_axes(h, self.axis_name)
        except ValueError:
            return  # an axis that is not bound matters to who differentiates: evaluation goes without
        rows = num_samples(h, axes)
        if self.scope != "global":
            rows = math.prod(shape_in_groups(h, self.scope, axes)[1:-1])
        if rows < self.fewest_rows:
            why = f"it needs {self.fewest_rows} samples, got {rows} in {h.shape}"
            warnings.warn(f"{name} adds nothing: {why}.", stacklevel=3)
        elif h.shape[-1] == 1 and self.missing_for_one_feature:
            warnings.warn(f"{name} adds {self.missing_for_one_feature}: it needs 2 features, got 1.", stacklevel=3)


def _penalty(reg: BatchRegularizer, h: Array, keep: Array | None) -> Array:
    if 0 in h.shape:
        return jnp.zeros((), statistics_dtype(h))
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
        return reg.scaled(times).gradient_of(h, keep, axes, samples_spec)
    share = reg.scaled(times / reg.scope)  # by its weights: every row would otherwise be divided

    def of_group(rows: Array, kept: Array | None = None) -> Array:
        return share.gradient_of(rows, kept, (), PartitionSpec())

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
