"""Variance-Covariance Regularization: Section 3 of the paper, readable on its own.

A regularizer is a function `h -> h`: the identity forward, and backward it adds its own gradient to the
incoming one. A model applies one wherever its `Sites` say and never knows which one it holds.

Paper: "Variance-Covariance Regularization Improves Representation Learning" (arXiv 2306.13292).
"""

import functools
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vcreg_jax import sampling
from vcreg_jax.add_gradient import Penalty, Regularizer, add_gradient, pytree, refuse_class
from vcreg_jax.statistics import (
    centred,
    check_axis_name,
    covariance,
    explicit_sharding,
    in_groups,
    map_groups,
    mean_and_covariance,
    num_samples,
    num_shards,
    of_all_devices,
    sample_axes,
    shape_in_groups,
    statistics_dtype,
)

SCALES = ("equation_4", "algorithm_1")


def identity(h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
    """`h` itself, and nothing is added in the backward pass: no regularization."""
    return h


@dataclass(frozen=True)
class Sites:
    """Where a model applies which regularizer; Appendix A's four placements are values of this class.

    1. `Sites(features=reg)`, 2. `Sites(block=reg)`, 3. `Sites(downsample=reg)`,
    4. `Sites(block=reg, downsample=reg)`. The paper settles on the second.
    """

    block: Regularizer = identity  # the output of every residual block, after its addition
    downsample: Regularizer = identity  # the output of every downsampling layer between stages
    features: Regularizer = identity  # the input of the classifier

    def __post_init__(self) -> None:
        for reg in (self.block, self.downsample, self.features):
            refuse_class(reg)


@pytree("alpha", "beta")
@dataclass(frozen=True)
class VCReg:
    """Variance-Covariance Regularization of features `h`, applied as `h = VCReg(...)(h)`.

    `h` has shape `(*samples, d)`: every leading axis counts as samples, so `(batch, height, width, d)` maps go
    in as they are (Sec. 3.2, "Spatial Dimensions"). With n samples in all, x = h - mean over samples and
    C = x'x / (n - 1), the penalty is

        alpha / d            * sum_i max(0, 1 - sqrt(C_ii + eps))              Eq. 3
        beta / (d (d - 1))   * sum_{i != j} C_ij^2                             Eq. 4
                             or, with delta, sum_{i != j} SmoothL1(C_ij)       Eq. 7

    and what the backward pass adds is one product `x @ M` with one symmetric matrix,

        M_ii = -alpha / (d (n - 1)) * (C_ii + eps)^-1/2   where C_ii + eps < 1, else 0
        M_ij = 4 beta / (d (d - 1) (n - 1)) * clip(C_ij, -delta, delta)

    Statistics are float32 (float64 for float64 features), products take operands in the dtype of `h`, and
    the result has the dtype of `h`. Zero variance is finite by `eps`; NaN passes through. With n < 2 the
    penalty is 0 and with d < 2 its covariance term is, with a warning.

    With `sample=k` only every k-th index along each axis of positions (all sample axes but the first) is looked at:
    n, x and C above are those of these rows, and the others receive nothing. That is the exact gradient of the
    penalty of these rows, and an estimate of the whole map's: averaged over the k^2 ways to place the rows, `x @ M`
    with M held is the exact one but for a factor (n - 1) / (n - k^2), and M is that of an unbiased estimate of C.
    Where fewer than 6 d rows would be left k is made smaller, down to 1 (`sampling`).

    The weights assume a task loss that is a mean over the whole batch. Loss scaling and gradient accumulation
    do not rescale this term by themselves: use `scaled`. Inside `shard_map` the term is the gradient of the
    whole batch's penalty with respect to the shard's rows, so differentiate a `pmean` of the shards' losses.

    With `axis_name`, as in `nnx.BatchNorm`, statistics and penalty are of the rows on all devices along these axes of
    an enclosing `pmap`, `vmap` or `shard_map`. Differentiate each device's own mean loss and average the gradients over
    the same axes: on k devices the term is k times the gradient of the whole batch's penalty with respect to the
    device's rows, so the average is the gradient of loss + penalty of the whole batch. `pmap`, `vmap` and
    `shard_map(check_vma=False)` need it: without, each device's rows count as a batch of their own. Under plain `jit`
    leave it out.

    `scale` says which of the paper's two covariance terms `beta` weighs. "equation_4" is the formula above.
    "algorithm_1" is n - 1 times that, in penalty and gradient: Algorithm 1 as printed leaves out the last
    1 / (n - 1) of Eq. 4's gradient. The first keeps its strength when the batch or the map grows, the second
    grows with both; n counts the samples that share statistics (one group's, of `sample` the kept ones).

    Departs from the paper: Algorithm 1 has no smooth L1 and expects centred rows; here the rows are centred for
    the statistics only (both gradients have zero column mean, so this is exact and the forward pass stays the
    identity). Eq. 3 has no eps; Algorithm 1 does.

    It is a pytree of `alpha` and `beta`: `jax.vmap` over a `VCReg` of arrays runs a grid as one program. A Flax model
    keeps its regularizers as static structure, so with traced weights create it inside the traced function.

    Raises:
      ValueError: for weights that are negative, `delta` or `eps` not above 0, an unknown `scale` or `scope`; and when
        called on integers, on fewer than two axes, on no features, or on a leading axis that `scope` does not divide.
    """

    alpha: float | Array = 0.64  # weight of the variance term; may be traced
    beta: float | Array = 0.08  # weight of the covariance term; may be traced
    delta: float | None = None  # covariances beyond this count linearly (Eq. 7); None: all squared
    eps: float = 1e-4  # added to variances under the square root
    scale: Literal["equation_4", "algorithm_1"] = "equation_4"  # the covariance term as defined, or n - 1 times that
    scope: Literal["global"] | int = "global"  # whose statistics: the whole batch's, or each of k groups' of rows
    axis_name: str | tuple[str, ...] | None = None  # of a pmap, vmap or shard_map over whose devices the batch is split
    sample: int = 1  # of each axis of positions only every `sample`-th index counts; 1: all

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            weight = getattr(self, name)
            if isinstance(weight, int | float) and not 0 <= weight < math.inf:
                raise ValueError(f"VCReg needs {name} >= 0, got {weight}.")
        if self.delta is not None and not self.delta > 0:
            raise ValueError(f"VCReg needs delta > 0, or None for no clipping, got {self.delta}.")
        if not self.eps > 0:
            raise ValueError(f"VCReg needs eps > 0 (zero variance would divide by 0), got {self.eps}.")
        if self.scale not in SCALES:
            raise ValueError(f"VCReg needs scale to be one of {', '.join(map(repr, SCALES))}, got {self.scale!r}.")
        whole = isinstance(self.scope, int) and not isinstance(self.scope, bool) and self.scope >= 1
        if self.scope != "global" and not whole:
            raise ValueError(f'VCReg needs scope="global" or a number of groups >= 1, got {self.scope!r}.')
        check_axis_name("VCReg", self.axis_name)
        if not isinstance(self.sample, int) or isinstance(self.sample, bool) or self.sample < 1:
            raise ValueError(f"VCReg needs sample >= 1, a whole number (1 for no sampling), got {self.sample!r}.")

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`h` itself; the backward pass adds `gradient(h)`."""
        _check(h, self)
        return add_gradient(self, h)

    def scaled(self, weight: float | Array) -> "VCReg":
        """The same regularizer with both terms times `weight`.

        With gradients summed over m micro-batches of a loss divided by m, use `scaled(1 / m)`; with a loss
        multiplied by S against underflow, `scaled(S)`. Micro-batch statistics are the micro-batch's own.
        """
        return replace(self, alpha=self.alpha * weight, beta=self.beta * weight)

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        """Eqs. 2-4 and 7 written out, in float32 or wider: the oracle of the backward pass, and what is logged."""
        _check(h, self)
        if (explicit := explicit_sharding(h)) is None:
            return self._penalty(h)
        with jax.sharding.use_abstract_mesh(explicit[0]):
            # `self` as an argument: traced weights may lie on the explicit mesh, too.
            return cast(Any, jax.sharding.auto_axes(VCReg._penalty, out_sharding=PartitionSpec()))(self, h)

    def _penalty(self, h: Array) -> Array:
        h, axes = sampling.keep(h, self.stride(h)), sample_axes(h, self.axis_name)
        if self.scope == "global":
            penalty = self._penalty_of(h, axes)
        else:
            mean = jax.vmap(self._penalty_of)(in_groups(h, self.scope, axes)).mean()
            penalty = lax.pmean(mean, axes) if axes else mean
        return penalty if self.axis_name is None else of_all_devices(penalty, h, axes)

    def _penalty_of(self, h: Array, axes: tuple[str, ...] = ()) -> Array:
        n, d = num_samples(h, axes), h.shape[-1]
        if n < 2:
            return jnp.zeros((), statistics_dtype(h))
        cov = covariance(h, axes)
        std = jnp.sqrt(jnp.diagonal(cov) + self.eps)
        variance_term = jnp.maximum(0.0, 1.0 - std).mean()
        if d < 2:
            return self.alpha * variance_term
        off = jnp.where(jnp.eye(d, dtype=bool), 0.0, cov)
        clipped = off if self.delta is None else jnp.clip(off, -self.delta, self.delta)
        costs = clipped * (2 * off - clipped)  # off^2, and beyond delta 2 delta abs(off) - delta^2
        factor = n - 1 if self.scale == "algorithm_1" else 1
        return self.alpha * variance_term + self.beta * factor * costs.sum() / (d * (d - 1))

    def gradient(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """The gradient of `penalty(h)` in closed form, in float32 or wider; of a sample in the dtype of `h`.

        With `axis_name` that of the sum over devices of their equal penalties, as `jax.grad(penalty)` is.
        """
        if (split := explicit_sharding(h)) is None:
            return self._gradient(h)
        # Explicit axes leave a contraction over a split axis to the author; here the compiler may choose.
        mesh, spec = split
        gradient = functools.partial(VCReg._gradient, samples_spec=PartitionSpec(*spec[:-1]))
        with jax.sharding.use_abstract_mesh(mesh):
            return cast(Any, jax.sharding.auto_axes(gradient, out_sharding=spec))(self, h)

    def stride(self, h: Float[Array, "*samples d"]) -> int:
        """Every how many indices along each axis of positions it looks at `h`: `sample`, or less where `h` is small."""
        axes = sample_axes(h, self.axis_name)
        if self.scope == "global":
            return sampling.stride(h.shape, self.sample, num_shards(axes))
        return sampling.stride(shape_in_groups(h, self.scope, axes)[1:], self.sample)

    def _gradient(self, h: Array, samples_spec: PartitionSpec | None = None) -> Array:
        axes = sample_axes(h, self.axis_name)
        times = 1.0 if self.axis_name is None else float(num_shards(axes))
        if self.scope == "global":
            return self.scaled(times)._gradient_of(h, axes, samples_spec)
        share = self.scaled(times / self.scope)  # by its weights: every row would otherwise be divided
        one_group = functools.partial(share._gradient_of, axes=(), samples_spec=PartitionSpec())
        return map_groups(one_group, h, self.scope, samples_spec, axes)

    def _gradient_of(self, h: Array, axes: tuple[str, ...], samples_spec: PartitionSpec | None) -> Array:
        if (stride := sampling.stride(h.shape, self.sample, num_shards(axes))) > 1:
            rows = samples_spec and PartitionSpec(*samples_spec[:1])  # the positions that are left may not divide
            of_kept = replace(self, sample=1)._gradient_of(sampling.keep(h, stride), axes, rows)
            # A TPU writes the whole map to memory: not in float32, since the sum with the incoming gradient is rounded.
            return sampling.put_back(of_kept.astype(h.dtype), h.shape, stride)
        n = num_samples(h, axes)
        if n < 2:
            return jnp.zeros(h.shape, statistics_dtype(h))
        mean, cov = mean_and_covariance(h, axes, samples_spec)
        # Written out once: TPUs would compute it anew with every tile of rows that it is multiplied with.
        pull = lax.optimization_barrier(self._pull(cov, n).astype(h.dtype))
        over_features = (((h.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(centred(h, mean), pull, over_features, preferred_element_type=cov.dtype)

    def _pull(self, cov: Array, n: int) -> Array:
        """M, the symmetric matrix with `gradient = x @ M`, from the covariance of n samples."""
        d = cov.shape[-1]
        on_diagonal = jnp.eye(d, dtype=bool)
        # Elementwise, since a diagonal taken out would be a kernel of its own on accelerators, and so what follows it.
        variances = jnp.where(on_diagonal, cov + self.eps, 1.0)
        hinge = jnp.where(variances < 1.0, lax.rsqrt(variances), 0.0)
        # Divisors are floats: as integers, those of 400,000 samples would overflow int32.
        to_unit_variance = jnp.asarray(self.alpha, cov.dtype) / float(d * (n - 1)) * hinge
        divisor = 1 if self.scale == "algorithm_1" else n - 1
        off = cov if self.delta is None else jnp.clip(cov, -self.delta, self.delta)
        to_zero_covariance = 4 * jnp.asarray(self.beta, cov.dtype) / float(max(d * (d - 1), 1) * divisor) * off
        return jnp.where(on_diagonal, -to_unit_variance, to_zero_covariance)


@pytree("reg")
@dataclass(frozen=True)
class explicit:  # noqa: N801 - reads as a function of a regularizer, `explicit(reg)`
    """`reg` with a backward pass that is autodiff of `reg.penalty`: the "naive" column of Table 1.

    The same mathematics as `reg`, from the written-out scalar: for comparing speed, and numbers.
    """

    reg: Penalty

    def __post_init__(self) -> None:
        refuse_class(self.reg)

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`h` itself; the backward pass adds `gradient(h)`."""
        jax.eval_shape(self.reg, h)  # refuses here, not in the backward pass, what `reg` refuses
        return add_gradient(self, h)

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        """`reg.penalty(h)`."""
        return self.reg.penalty(h)

    def gradient(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`jax.grad(reg.penalty)(h)`."""
        return jax.grad(self.reg.penalty)(h)


def _check(h: Array, reg: VCReg) -> None:
    if h.ndim < 2:
        raise ValueError(
            f"VCReg needs features of shape (*samples, d) with at least two axes, got shape {h.shape}. "
            "Add a batch axis, or apply it before features are reduced."
        )
    if h.shape[-1] == 0:
        raise ValueError(f"VCReg needs at least one feature, got shape {h.shape}.")
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(f"VCReg needs floating-point features, got {h.dtype}. Cast them first.")
    if not all(isinstance(size, int) for size in h.shape):
        return  # a program exported for any batch: there is no number to judge
    try:
        axes = sample_axes(h, reg.axis_name)
    except ValueError:
        return  # an axis that is not bound matters to who differentiates: evaluation goes without
    rows = num_samples(h, axes) if reg.scope == "global" else math.prod(shape_in_groups(h, reg.scope, axes)[1:-1])
    if rows < 2:
        warnings.warn(f"VCReg adds nothing: a covariance needs 2 samples, got {rows} in {h.shape}.", stacklevel=3)
    elif h.shape[-1] < 2:
        warnings.warn(f"VCReg adds no covariance term: it needs 2 features, got {h.shape[-1]}.", stacklevel=3)
