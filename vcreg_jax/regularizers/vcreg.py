"""Variance-Covariance Regularization: Section 3 of the paper, readable on its own.

A regularizer is a function `h -> h`: the identity forward, and backward it adds its own gradient to the
incoming one. A model applies one wherever its `Sites` say and never knows which one it holds.

Paper: "Variance-Covariance Regularization Improves Representation Learning" (arXiv 2306.13292).
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vcreg_jax.regularizers import sampling
from vcreg_jax.regularizers.add_gradient import Penalty, Regularizer, add_gradient, identity, pytree, refuse_class
from vcreg_jax.regularizers.mean_removal import RemoveMean
from vcreg_jax.regularizers.statistics import (
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


@dataclass(frozen=True)
class Sites:
    """Say where a model of this package applies which regularizer.

    Appendix A's four placements are 1. `Sites(features=reg)`, 2. `Sites(block=reg)`, 3. `Sites(downsample=reg)`,
    4. `Sites(block=reg, downsample=reg)`. The paper settles on the second.

    Args:
      block: the output of every residual block, after its addition, `(batch, height, width, d)`; in a ViT
        `(batch, tokens, d)`.
      downsample: the output of every downsampling layer between stages, `(batch, height, width, d)`.
      features: the input of the classifier, `(batch, d)`.

    `RemoveMean(reg)` at a site takes the batch's mean off the features first, as the paper's Appendix A does.

    Raises:
      ValueError: for the class of a regularizer in place of one with its weights.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> sites = vc.Sites(block=vc.VCReg(alpha=0.64, beta=0.08))
      >>> model = vc.models.create("resnet20", num_classes=10, sites=sites, rngs=nnx.Rngs(0))

    Reference:
      The VCReg paper (arXiv 2306.13292), Appendix A and Table 7.
    """

    block: Regularizer = identity
    downsample: Regularizer = identity
    features: Regularizer = identity

    def __post_init__(self) -> None:
        for reg in (self.block, self.downsample, self.features):
            refuse_class(reg)

    def map(self, function: Callable[[str, Regularizer], Regularizer]) -> "Sites":
        """Return the same sites with `function(name, reg)` in place of each regularizer; means stay removed.

        Args:
          function: takes the site's name, such as `"block"`, and its regularizer, `identity` where there is none.

        Returns:
          The new sites.

        Examples:
          >>> import vcreg_jax as vc
          >>> vc.Sites(block=vc.RemoveMean(vc.VCReg())).map(lambda name, reg: vc.identity).block.reg is vc.identity
          True
        """

        changed = {name: function(name, reg) for name, reg in self.regularizers.items()}
        removed = (name for name in changed if isinstance(getattr(self, name), RemoveMean))
        return Sites(**changed | {name: RemoveMean(changed[name]) for name in removed})

    @property
    def regularizers(self) -> dict[str, Regularizer]:
        """By the site's name, what is applied there; of `RemoveMean(reg)` it is `reg`."""
        own = {site.name: getattr(self, site.name) for site in fields(self)}
        return {name: reg.reg if isinstance(reg, RemoveMean) else reg for name, reg in own.items()}


@pytree("alpha", "beta")
@dataclass(frozen=True)
class VCReg:
    """Regularize features by Variance-Covariance Regularization: `h = VCReg(...)(h)`.

    A call returns `h`, and the backward pass adds the gradient of the penalty. `h` has shape `(*samples, d)` and a
    floating dtype. Every leading axis counts as samples, so maps `(batch, height, width, d)` go in as they are
    (Sec. 3.2, "Spatial Dimensions"). With n samples in all, x = h - mean over samples and C = x'x / (n - 1), the
    penalty is

        alpha / d * sum_i max(0, 1 - sqrt(C_ii + eps))         Eq. 3
        + beta / (d (d - 1)) * sum_{i != j} C_ij^2             Eq. 4
        or, with delta, SmoothL1(C_ij) in place of C_ij^2      Eq. 7

    The backward pass adds one product `x @ M` with one symmetric matrix:

        M_ii = -alpha / (d (n - 1)) * (C_ii + eps)^-1/2   where C_ii + eps < 1, else 0
        M_ij = 4 beta / (d (d - 1) (n - 1)) * clip(C_ij, -delta, delta)

    **Precision.** Statistics are float32 (float64 for float64 features), products take operands in the dtype of `h`,
    and the result has the dtype of `h`. `eps` keeps zero variance finite; NaN passes through. With n < 2 the penalty
    is 0; with d < 2 its covariance term is. Either gives a warning.

    **Scale.** "equation_4" is the formula above. "algorithm_1" is n - 1 times Eq. 4, in penalty and gradient, because
    Algorithm 1 as printed leaves out the last 1 / (n - 1) of Eq. 4's gradient. The first keeps its strength when the
    batch or the map grows; the second grows with both. n counts the samples that share statistics: one group's, and
    of `sample` the kept ones.

    **Loss.** The weights assume a task loss that is a mean over the whole batch. Loss scaling and gradient
    accumulation do not rescale this term by themselves: use `scaled`. Inside `shard_map` the term is the gradient of
    the whole batch's penalty with respect to the shard's rows, so differentiate a `pmean` of the shards' losses.

    **Several devices.** Plain `jit` needs no `axis_name`. `pmap`, `vmap` and `shard_map(check_vma=False)` do, as in
    `nnx.BatchNorm`; without it each device's rows count as a batch of their own. Differentiate each device's own mean
    loss and average the gradients over the same axes. On k devices the term is k times the gradient of the whole
    batch's penalty with respect to the device's rows, so the average is that of the whole batch's loss + penalty.

    **Sampled positions.** With `sample=k` n, x and C are those of every k-th index along each axis of positions (all
    sample axes but the first); the other rows receive nothing. This is the exact gradient of the kept rows' penalty,
    and an estimate of the whole map's. Averaged over the k^2 ways to place the rows, `x @ M` with M held is the exact
    one but for a factor (n - 1) / (n - k^2), and M is that of an unbiased estimate of C. Where fewer than 6 d rows
    would be left, k is made smaller, down to 1.

    **Departures from the paper.** Algorithm 1 has no smooth L1 and expects centred rows. Here rows are centred for the
    statistics only, which is exact, since both gradients have zero column mean. Eq. 3 has no eps; Algorithm 1 does.

    It is a pytree of `alpha` and `beta`: `jax.vmap` over a `VCReg` of arrays runs a grid as one program. A Flax model
    keeps its regularizers as static structure, so with traced weights create it inside the traced function.

    Args:
      alpha: weight of the variance term, at least 0; a number or a traced scalar.
      beta: weight of the covariance term, at least 0; a number or a traced scalar.
      delta: covariances beyond it count linearly (Eq. 7), above 0; None squares all of them (Eq. 4).
      eps: added to variances under the square root, above 0.
      scale: "equation_4", the covariance term as defined, or "algorithm_1", n - 1 times that.
      scope: "global" takes statistics of the whole batch; k of each of k equal groups of rows, and means over groups.
      axis_name: of the `pmap`, `vmap` or `shard_map` over whose devices the batch is split; None under plain `jit`.
      sample: of each axis of positions only every `sample`-th index counts; 1 counts all.

    Raises:
      ValueError: for weights that are negative, `delta` or `eps` not above 0, an unknown `scale` or `scope`; and when
        called on integers, on fewer than two axes, on no features, or on a leading axis that `scope` does not divide.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> reg = vc.VCReg(alpha=0.64, beta=0.08)
      >>> h = jax.random.normal(jax.random.key(0), (32, 8)) / 2
      >>> bool((reg(h) == h).all())
      True
      >>> added = jax.grad(lambda h: reg(h).sum())(h) - 1
      >>> bool(jnp.allclose(added, jax.grad(reg.penalty)(h), atol=1e-6))
      True

    Reference:
      Zhu et al., "Variance-Covariance Regularization Improves Representation Learning" (arXiv 2306.13292), Eq. 2-4 and
      7, Algorithm 1.
    """

    alpha: float | Array = 0.64
    beta: float | Array = 0.08
    delta: float | None = None
    eps: float = 1e-4
    scale: Literal["equation_4", "algorithm_1"] = "equation_4"
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None
    sample: int = 1

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
        """Return `h`; the backward pass adds `gradient(h)`."""
        _check(h, self)
        return add_gradient(self, h)

    def scaled(self, weight: float | Array) -> "VCReg":
        """Return the same regularizer with both terms times `weight`.

        With gradients summed over m micro-batches of a loss divided by m, use `scaled(1 / m)`; with a loss
        multiplied by S against underflow, `scaled(S)`. Micro-batch statistics are the micro-batch's own.

        Args:
          weight: a number or a traced scalar.
        """
        return replace(self, alpha=self.alpha * weight, beta=self.beta * weight)

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        """Return Eqs. 2-4 and 7 written out: the oracle of the backward pass, and what is logged.

        Args:
          h: features `(*samples, d)`, of a floating dtype.

        Returns:
          A scalar in float32 or wider.
        """
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
        """Return the gradient of `penalty(h)` in closed form.

        With `axis_name` it is that of the sum over devices of their equal penalties, as `jax.grad(penalty)` is.

        Args:
          h: features `(*samples, d)`, of a floating dtype.

        Returns:
          `(*samples, d)` in float32 or wider; with `sample` above 1 in the dtype of `h`.
        """
        if (split := explicit_sharding(h)) is None:
            return self._gradient(h)
        # Explicit axes leave a contraction over a split axis to the author; here the compiler may choose.
        mesh, spec = split
        gradient = functools.partial(VCReg._gradient, samples_spec=PartitionSpec(*spec[:-1]))
        with jax.sharding.use_abstract_mesh(mesh):
            return cast(Any, jax.sharding.auto_axes(gradient, out_sharding=spec))(self, h)

    def stride(self, h: Float[Array, "*samples d"]) -> int:
        """Return the stride at which it looks at `h` along axes of positions: `sample`, or less where `h` is small.

        Args:
          h: features `(*samples, d)`, or their shape and dtype.
        """
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
    """Take `reg` with a backward pass that is autodiff of `reg.penalty`: the "naive" column of Table 1.

    The same mathematics as `reg`, from the written-out scalar: for comparing speed, and numbers.

    Args:
      reg: a regularizer with a `penalty`, such as `VCReg`.

    Raises:
      ValueError: for the class of a regularizer in place of one with its weights.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> h, reg = jax.random.normal(jax.random.key(0), (32, 8)) / 2, vc.VCReg()
      >>> fast, naive = (jax.grad(lambda h, reg=reg: reg(h).sum())(h) for reg in (reg, vc.explicit(reg)))
      >>> bool(jnp.allclose(fast, naive, atol=1e-6))
      True
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
