"""The mean and covariance of a batch of features, wherever its rows lie.

A batch may be whole on one device, split by the compiler over a mesh of auto axes, split by type over explicit
axes, or be a shard inside `shard_map`. The regularizers ask here and do not know.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Bool, Float


def statistics_dtype(h: Array) -> jnp.dtype:
    """float32, or float64 for float64 features."""
    return jnp.promote_types(h.dtype, jnp.float32)


def shard_axes(h: Array) -> tuple[str, ...]:
    """The mesh axes over which an enclosing `shard_map` has split `h`; none outside of one.

    With `check_vma=False` JAX does not know them, and a shard then counts as a batch of its own.
    """
    varying = jax.typeof(h).manual_axis_type.varying
    return tuple(name for name in jax.sharding.get_abstract_mesh().axis_names if name in varying)


def vary_with(x: Array, *parameters: Array) -> tuple[Array, ...]:
    """`parameters`, by type as different between shards as `x`: then JAX sums their gradients over the shards.

    It does so by itself except where a `jax.custom_vjp` gives the gradients.
    """
    axes = shard_axes(x)
    missing = (tuple(set(axes) - set(shard_axes(parameter))) for parameter in parameters)
    return tuple(lax.pcast(p, new, to="varying") if new else p for p, new in zip(parameters, missing, strict=True))


def check_axis_name(name: str, axis_name: object) -> None:
    """Refuses what `axis_name` of the regularizer `name` cannot be."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if axis_name is not None and not (names and all(isinstance(axis, str) for axis in names)):
        raise ValueError(f"{name} needs axis_name to be a string, a tuple of strings or None, got {axis_name!r}.")


def sample_axes(h: Array, axis_name: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes over which further samples of `h` lie: those named, or else `shard_axes(h)`.

    Raises:
      ValueError: for a name that no enclosing `pmap`, `vmap` or `shard_map` binds.
    """
    if axis_name is None:
        return shard_axes(h)
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    try:
        lax.axis_size(axes)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not bound where statistics over it are asked for. Differentiate or diagnose "
            "inside of a pmap, vmap or shard_map with this axis name; under jit alone leave axis_name out."
        ) from None
    return axes


def of_all_devices(penalty: Float[Array, ""], h: Array, axes: tuple[str, ...]) -> Float[Array, ""]:
    """Return `penalty`, with k times its gradient: each of the k devices along `axes` holds the same penalty.

    Differentiating already counts all devices, except along axes over which a `shard_map` knows that `h` varies.
    There the missing k - 1 gradients are added, by a term whose value is 0.
    """
    known = jax.typeof(h).manual_axis_type.varying
    others = num_shards(tuple(name for name in axes if name in known)) - 1
    return penalty + others * (penalty - lax.stop_gradient(penalty)) if others else penalty


def num_samples(h: Array, axes: tuple[str, ...] = ()) -> int:
    """The product of all axes but the last, times the number of shards over `axes`."""
    return math.prod(h.shape[:-1]) * num_shards(axes)


def in_groups(
    h: Float[Array, "batch *rest d"], groups: int, axes: tuple[str, ...] | None = None
) -> Float[Array, "groups rows *rest d"]:
    """The leading axis cut into equal consecutive groups; inside `shard_map`, the groups that lie on this shard.

    `axes` are those over which the other groups lie, by default `shard_axes(h)`.
    """
    return h.reshape(shape_in_groups(h, groups, axes))


def map_groups(
    function: Callable[..., Array],
    h: Float[Array, "batch *rest d"],
    groups: int,
    samples_spec: PartitionSpec | None = None,
    axes: tuple[str, ...] | None = None,
    keep: Bool[Array, "*samples"] | None = None,
) -> Float[Array, "batch *rest d"]:
    """`function` of every group's rows, which keeps their shape, put together again.

    Where shards hold whole groups (`samples_spec` as in `mean_and_covariance`) each runs its own as a program of its
    own: with an axis of groups the compiler keeps more in memory, even if that axis has but one group on a device.
    With `keep`, which says of every row whether it counts, it is `function(rows, keep)`.
    """
    mesh, axes = _mesh_of(h), shard_axes(h) if axes is None else axes
    if samples_spec is None:
        samples_spec = PartitionSpec() if axes else _leading_axis_over_auto_axes(h, mesh)
    names = _names_in(samples_spec)
    only_images_split = not _names_in(PartitionSpec(*samples_spec[1:]))
    arrays = (h,) if keep is None else (h, keep)
    if names and only_images_split and groups % math.prod(mesh.shape[name] for name in names) == 0:

        def on_shard(h: Array, keep: Array | None = None) -> Array:
            return map_groups(function, h, groups, PartitionSpec(), keep=keep)

        return jax.shard_map(on_shard, mesh=mesh, in_specs=samples_spec, out_specs=samples_spec)(*arrays)
    shape = shape_in_groups(h, groups, axes)
    if shape[0] == 1:
        return function(*arrays)
    apart = (h.reshape(shape),) if keep is None else (h.reshape(shape), keep.reshape(shape[:-1]))
    return jax.vmap(function)(*apart).reshape(h.shape)


def shape_in_groups(
    h: Float[Array, "batch *rest d"], groups: int, axes: tuple[str, ...] | None = None
) -> tuple[int, ...]:
    """The shape of `in_groups(h, groups, axes)`, found without reshaping.

    Raises:
      ValueError: when the whole batch's leading axis does not divide into `groups`, or a group would straddle
        two shards of a `shard_map`.
    """
    shards = num_shards(shard_axes(h) if axes is None else axes)
    batch = h.shape[0] * shards
    if batch % groups or groups % shards:
        raise ValueError(
            f"scope={groups} needs a batch that divides into {groups} equal groups, got {batch} rows on {shards} "
            f"shard(s). Use a divisor of {batch}" + (f" that is a multiple of {shards}." if shards > 1 else ".")
        )
    return groups // shards, batch // groups, *h.shape[1:]


class Mean(NamedTuple):
    """A mean as the sum of two numbers, since one would lose the digits that lie far below it: `near + rest`."""

    near: Float[Array, " d"]  # one of each feature's own values: differences from it are exact where they matter
    rest: Float[Array, " d"]


def mean_of(
    h: Float[Array, "*samples d"], where: Bool[Array, "*samples"] | None = None, axes: tuple[str, ...] = ()
) -> Mean:
    """The mean over samples in float32 or wider, by sums that the compiler places; of the rows `where` it is true.

    A sum of many rows far from 0 loses digits, and one number for their mean would. Hence it is summed how far they
    lie below the largest, and then what rounding has left of that. Of equal rows it is exactly their value. `axes` are
    those of an enclosing `shard_map` over which further samples lie.
    """
    samples, x = tuple(range(h.ndim - 1)), h.astype(statistics_dtype(h))
    keep = jnp.ones((), bool) if where is None else where[..., None]
    largest = lax.stop_gradient(jnp.where(keep, x, -jnp.inf).max(axis=samples, initial=-jnp.inf))
    count = jnp.asarray(num_samples(h), x.dtype) if where is None else where.sum(dtype=x.dtype)
    if axes:
        largest, count = lax.pmax(largest, axes), lax.psum(count, axes)
    mean = Mean(jnp.where(largest == -jnp.inf, 0.0, largest), jnp.zeros_like(largest))
    for _ in range(2):
        mean = lax.stop_gradient(mean)  # what is added has the whole derivative
        total = jnp.where(keep, less(h, mean), 0.0).sum(axis=samples)
        total = lax.psum(total, axes) if axes else total
        mean = mean._replace(rest=mean.rest + total / jnp.maximum(count, 1))
    return mean


def less(h: Float[Array, "*samples d"], mean: Mean) -> Float[Array, "*samples d"]:
    """`h - mean` in the dtype of the mean."""
    near, rest = (jnp.expand_dims(part, tuple(range(h.ndim - 1))) for part in mean)
    return (h.astype(near.dtype) - near) - rest


def centred(h: Float[Array, "*samples d"], mean: Mean) -> Float[Array, "*samples d"]:
    """`less(h, mean)` in the dtype of `h`."""
    return less(h, mean).astype(h.dtype)


def covariance(h: Float[Array, "*samples d"], axes: tuple[str, ...] = ()) -> Float[Array, "d d"]:
    """C = x'x / (n - 1), x = h - mean over samples: the unbiased covariance of n >= 2 samples, below Eq. 4.

    The textbook form in float32 or wider: a mean and a product, each with all-reduces of its own over a sharded batch.
    `axes` are those of an enclosing `shard_map` over which further samples lie.
    """
    samples = tuple(range(h.ndim - 1))
    x = less(h, mean_of(h, axes=axes))
    scatter = lax.dot_general(x, x, ((samples, samples), ((), ())))
    return (lax.psum(scatter, axes) if axes else scatter) / (num_samples(h, axes) - 1)


def mean_and_covariance(
    h: Float[Array, "*samples d"], axes: tuple[str, ...] = (), samples_spec: PartitionSpec | None = None
) -> tuple[Mean, Float[Array, "d d"]]:
    """Mean and unbiased covariance of n >= 2 samples in the cheapest form: at most one all-reduce.

    Products take operands in the dtype of `h` and accumulate in float32 or wider. An offset of the features costs no
    digits, however large it is.

    Args:
      h: features; any number of leading sample axes.
      axes: the axes of an enclosing `shard_map` over which further samples lie.
      samples_spec: outside of `shard_map`, how the sample axes are split over the mesh, if known (it is for explicit
        axes). Otherwise the leading axis is taken to be split over all auto axes of the mesh. It decides what is
        communicated, never the result: where an auto axis splits something else, features may be gathered.
    """
    return on_shards(_moments_over, h, axes=axes, samples_spec=samples_spec)[1:]


class Moments(NamedTuple):
    """Of the rows that count."""

    count: Any  # how many: an int, with `keep` an array
    mean: Mean  # of all d features
    covariance: Float[Array, "k k"]  # of the features, or of their projections; unbiased, 0 for a single row


def moments(
    h: Float[Array, "*samples d"],
    axes: tuple[str, ...] = (),
    samples_spec: PartitionSpec | None = None,
    keep: Bool[Array, "*samples"] | None = None,
    directions: Float[Array, "d k"] | None = None,
) -> Moments:
    """`mean_and_covariance`, of the rows where `keep` is true alone and projected on `directions`; one all-reduce."""
    replicated = () if directions is None else (directions,)
    found = on_shards(_moments_over, h, keep, *replicated, axes=axes, samples_spec=samples_spec)
    return found if keep is not None else found._replace(count=num_samples(h, axes))


def on_shards(
    function: Callable[..., Any],
    h: Float[Array, "*samples d"],
    keep: Bool[Array, "*samples"] | None = None,
    *replicated: Array,
    axes: tuple[str, ...] = (),
    samples_spec: PartitionSpec | None = None,
    returns_rows: bool = False,
) -> Any:
    """`function(h, keep, *replicated, axes=axes)`, where `axes` name all axes over which further samples lie.

    Where the compiler would split the samples over a mesh, each shard runs it as a program of its own, so `function`
    decides what is communicated. What it returns is the same on all shards or, with `returns_rows`, one row a sample.
    """
    mesh = _mesh_of(h)
    if samples_spec is None:
        samples_spec = PartitionSpec() if axes else _leading_axis_over_auto_axes(h, mesh)
    names = _names_in(samples_spec)
    if not names:
        return function(h, keep, *replicated, axes=axes)
    over_shards = functools.partial(function, axes=names)
    specs = (samples_spec, samples_spec, *(PartitionSpec() for _ in replicated))
    out = samples_spec if returns_rows else PartitionSpec()
    return jax.shard_map(over_shards, mesh=mesh, in_specs=specs, out_specs=out)(h, keep, *replicated)


def _moments_over(h: Array, keep: Array | None, directions: Array | None = None, *, axes: tuple[str, ...]) -> Moments:
    """Moments of this shard's rows together with those of all shards over `axes`.

    Contracts over all leading axes at once, since a reshape to `(n, d)` can cost layout copies. Scatter matrices
    add; each shard's mean travels beside them in rows of its own, so that one all-reduce carries everything
    and the part of the covariance that lies between shards is formed without cancellation:

        C (n - 1) = sum_k S_k + sum_k n_k (m_k - m)(m_k - m)'

    (Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, Eq. 2.1).
    """
    samples = tuple(range(h.ndim - 1))
    mean, rows = (_mean(h), num_samples(h)) if keep is None else (mean_of(h, keep), keep.sum(dtype=statistics_dtype(h)))
    x = centred(h, mean)
    x = x if keep is None else jnp.where(keep[..., None], x, 0)
    x = x if directions is None else projected(x, directions).astype(h.dtype)
    scatter = lax.dot_general(x, x, ((samples, samples), ((), ())), preferred_element_type=mean.rest.dtype)
    if not axes:
        if keep is None:
            return Moments(None, mean, scatter / (rows - 1))
        return Moments(rows, mean, scatter / jnp.maximum(rows - 1, 1))
    d, k, shards = h.shape[-1], len(scatter), lax.axis_size(axes)
    is_own_row = jnp.arange(shards)[:, None] == lax.axis_index(axes)
    own = mean if keep is None else (*mean, jnp.full(d, rows))
    own_rows = [jnp.where(is_own_row, part[None], 0.0) for part in own]
    scatter = scatter if k == d else jnp.pad(scatter, ((0, 0), (0, d - k)))
    totals = lax.psum(jnp.concatenate([scatter, *own_rows]), axes)
    scatter, nears, rests = totals[:k, :k], totals[k : k + shards], totals[k + shards : k + 2 * shards]
    if keep is None:
        near, counts, count = nears[:1], rows, None
        from_first = (nears - near) + rests
        rest = from_first.mean(axis=0)
    else:
        counts = totals[k + 2 * shards :, :1]
        near, count = nears[jnp.argmax(counts[:, 0])][None], counts.sum()  # that of a shard without a row means nothing
        from_first = jnp.where(counts > 0, (nears - near) + rests, 0.0)
        rest = (counts * from_first).sum(axis=0) / jnp.maximum(count, 1)
    between = from_first - rest[None]
    between = between if directions is None else between @ directions
    scatter = scatter + (counts * between).T @ between
    degrees = shards * rows - 1 if count is None else jnp.maximum(count - 1, 1)
    return Moments(count, Mean(near[0], rest), scatter / degrees)


def projected(x: Float[Array, "*samples d"], directions: Float[Array, "d k"]) -> Float[Array, "*samples k"]:
    """`x @ directions`, with operands in the dtype of `x`, in float32 or wider."""
    over_features = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(x, directions.astype(x.dtype), over_features, preferred_element_type=statistics_dtype(x))


def _mean(h: Array) -> Mean:
    """The same as `mean_of` for the rows of one shard, but cheaper: it reads them once, and an eighth of them twice.

    First it averages the differences of an eighth of the rows from a single row. Then it averages the differences of
    all rows from that mean. It lies at most sqrt(7) standard deviations from the true one, so the differences are small
    and their sum loses no digits, even over a million rows.
    """
    samples, dtype = tuple(range(h.ndim - 1)), statistics_dtype(h)
    near = lax.stop_gradient(h[(0,) * len(samples)]).astype(dtype)
    mean = Mean(near, jnp.zeros_like(near))
    for rows in (h[: -(-len(h) // 8)], h):
        mean = mean._replace(rest=mean.rest + less(rows, mean).mean(axis=samples))
    return mean


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
