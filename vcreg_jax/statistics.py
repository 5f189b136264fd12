"""The mean and covariance of a batch of features, wherever its rows lie.

A batch may be whole on one device, split by the compiler over a mesh of auto axes, split by type over explicit
axes, or be a shard inside `shard_map`. The regularizers ask here and do not know.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Float


def statistics_dtype(h: Array) -> jnp.dtype:
    """float32, or float64 for float64 features."""
    return jnp.promote_types(h.dtype, jnp.float32)


def shard_axes(h: Array) -> tuple[str, ...]:
    """The mesh axes over which an enclosing `shard_map` has split `h`; none outside of one.

    With `check_vma=False` JAX does not know them, and a shard then counts as a batch of its own.
    """
    varying = jax.typeof(h).manual_axis_type.varying
    return tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name in varying)


def num_samples(h: Array, axes: tuple[str, ...] = ()) -> int:
    """The product of all axes but the last, times the number of shards over `axes`."""
    return math.prod(h.shape[:-1]) * num_shards(axes)


def in_groups(h: Float[Array, "batch *rest d"], groups: int) -> Float[Array, "groups rows *rest d"]:
    """The leading axis cut into equal consecutive groups; inside `shard_map`, the groups that lie on this shard."""
    return h.reshape(shape_in_groups(h, groups))


def map_groups(
    function: Callable[[Array], Array],
    h: Float[Array, "batch *rest d"],
    groups: int,
    samples_spec: PartitionSpec | None = None,
) -> Float[Array, "batch *rest d"]:
    """`function` of every group's rows, which keeps their shape, put together again.

    Where shards hold whole groups (`samples_spec` as in `mean_and_covariance`) each runs its own as a program of its
    own: with an axis of groups the compiler keeps more in memory, even if that axis has but one group on a device.
    """
    mesh = _mesh_of(h)
    if samples_spec is None:
        samples_spec = PartitionSpec() if shard_axes(h) else _leading_axis_over_auto_axes(h, mesh)
    names = _names_in(samples_spec)
    only_images_split = not _names_in(PartitionSpec(*samples_spec[1:]))
    if names and only_images_split and groups % math.prod(mesh.shape[name] for name in names) == 0:
        on_shard = functools.partial(map_groups, function, groups=groups, samples_spec=PartitionSpec())
        return jax.shard_map(on_shard, mesh=mesh, in_specs=samples_spec, out_specs=samples_spec)(h)
    if shape_in_groups(h, groups)[0] == 1:
        return function(h)
    return jax.vmap(function)(in_groups(h, groups)).reshape(h.shape)


def shape_in_groups(h: Float[Array, "batch *rest d"], groups: int) -> tuple[int, ...]:
    """The shape of `in_groups(h, groups)`, found without reshaping.

    Raises:
      ValueError: when the whole batch's leading axis does not divide into `groups`, or a group would straddle
        two shards of a `shard_map`.
    """
    shards = num_shards(shard_axes(h))
    batch = h.shape[0] * shards
    if batch % groups or groups % shards:
        raise ValueError(
            f"scope={groups} needs a batch that divides into {groups} equal groups, got {batch} rows on {shards} "
            f"shard(s). Use a divisor of {batch}" + (f" that is a multiple of {shards}." if shards > 1 else ".")
        )
    return groups // shards, batch // groups, *h.shape[1:]


def covariance(h: Float[Array, "*samples d"], axes: tuple[str, ...] = ()) -> Float[Array, "d d"]:
    """C = x'x / (n - 1), x = h - mean over samples: the unbiased covariance of n >= 2 samples, below Eq. 4.

    The textbook form in float32 or wider: two passes, and two all-reduces over a sharded batch. `axes` are those
    of an enclosing `shard_map` over which further samples lie.
    """
    dtype = statistics_dtype(h)
    samples = tuple(range(h.ndim - 1))
    mean = h.mean(axis=samples, dtype=dtype)
    x = _less(h, lax.pmean(mean, axes) if axes else mean)
    scatter = lax.dot_general(x, x, ((samples, samples), ((), ())))
    return (lax.psum(scatter, axes) if axes else scatter) / (num_samples(h, axes) - 1)


def mean_and_covariance(
    h: Float[Array, "*samples d"], axes: tuple[str, ...] = (), samples_spec: PartitionSpec | None = None
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Mean and unbiased covariance of n >= 2 samples in the cheapest form: at most one all-reduce.

    Products take operands in the dtype of `h` and accumulate in float32 or wider.

    Args:
      h: features; any number of leading sample axes.
      axes: the axes of an enclosing `shard_map` over which further samples lie.
      samples_spec: outside of `shard_map`, how the sample axes are split over the mesh, if known (it is for explicit
        axes). Otherwise the leading axis is taken to be split over all auto axes of the mesh. It decides what is
        communicated, never the result: where an auto axis splits something else, features may be gathered.
    """
    mesh = _mesh_of(h)
    if samples_spec is None:
        samples_spec = PartitionSpec() if axes else _leading_axis_over_auto_axes(h, mesh)
    split_by_compiler = _names_in(samples_spec)
    if not split_by_compiler:
        return _mean_and_covariance_over(h, axes)
    over_shards = functools.partial(_mean_and_covariance_over, axes=split_by_compiler)
    replicated = PartitionSpec()
    return jax.shard_map(over_shards, mesh=mesh, in_specs=samples_spec, out_specs=(replicated, replicated))(h)


def _mean_and_covariance_over(h: Array, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """Mean and covariance of this shard's rows together with those of all shards over `axes`.

    Contracts over all leading axes at once, since a reshape to `(n, d)` can cost layout copies. Scatter matrices
    add; each shard's mean travels beside them in a row of its own, so that one all-reduce carries everything
    and the part of the covariance that lies between shards is formed without cancellation:

        C (n - 1) = sum_k S_k + n_k sum_k (m_k - m)(m_k - m)'

    (Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, Eq. 2.1).
    """
    dtype, d = statistics_dtype(h), h.shape[-1]
    samples = tuple(range(h.ndim - 1))
    over_samples = functools.partial(
        lax.dot_general, dimension_numbers=((samples, samples), ((), ())), preferred_element_type=dtype
    )
    rows = math.prod(h.shape[:-1])
    ones = jnp.ones(h.shape[:-1], h.dtype)
    # Of float32 rows accelerators would round the operands, which an offset much larger than the spread cannot bear.
    mean = over_samples(ones, h, precision=lax.Precision.HIGHEST) / rows
    x = centred(h, mean)
    scatter = over_samples(x, x)
    if not axes:
        return mean, scatter / (rows - 1)
    shards = lax.axis_size(axes)
    is_own_row = jnp.arange(shards)[:, None] == lax.axis_index(axes)
    totals = lax.psum(jnp.concatenate([scatter, jnp.where(is_own_row, mean[None], 0.0)]), axes)
    scatter, means = totals[:d], totals[d:]
    mean = means.mean(axis=0)
    between = means - mean[None]
    return mean, (scatter + rows * between.T @ between) / (shards * rows - 1)


def centred(h: Float[Array, "*samples d"], mean: Float[Array, " d"]) -> Float[Array, "*samples d"]:
    """`h - mean`, subtracted in the dtype of the mean and returned in that of `h`."""
    return _less(h, mean).astype(h.dtype)


def _less(h: Array, mean: Array) -> Array:
    return h.astype(mean.dtype) - jnp.expand_dims(mean, tuple(range(h.ndim - 1)))


def explicit_sharding(h: Array) -> tuple[AbstractMesh, PartitionSpec] | None:
    """The mesh and the split of `h` if they are part of its type (a mesh with explicit axes), else None."""
    sharding = jax.typeof(h).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return (sharding.mesh, sharding.spec) if explicit else None


def num_shards(axes: tuple[str, ...]) -> int:
    """How many shards lie along the `axes` of an enclosing `shard_map`."""
    return lax.axis_size(axes) if axes else 1


def _mesh_of(h: Array) -> AbstractMesh:
    """The mesh that the program is compiled for: from `jax.set_mesh`, else from arguments placed on one."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.typeof(h).sharding.mesh if mesh.empty else mesh


def _leading_axis_over_auto_axes(h: Array, mesh: AbstractMesh) -> PartitionSpec:
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name, size in mesh.shape.items() if kinds[name] == AxisType.Auto and size > 1)
    divides = h.shape[0] % math.prod(mesh.shape[name] for name in axes) == 0
    return PartitionSpec(axes) if axes and divides else PartitionSpec()


def _names_in(spec: PartitionSpec) -> tuple[str, ...]:
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
    return tuple(name for entry in entries for name in entry)
