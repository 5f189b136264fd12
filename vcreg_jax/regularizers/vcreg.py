"""Variance-Covariance Regularization: Section 3 of the paper, readable on its own.

A regularizer is a function `h -> h`: the identity forward, and backward it adds its own gradient to the
incoming one. A model applies one wherever its `Sites` say and never knows which one it holds.

Paper: "Variance-Covariance Regularization Improves Representation Learning" (arXiv 2306.13292).
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vcreg_jax.regularizers import sampling
from vcreg_jax.regularizers.add_gradient import pytree
from vcreg_jax.regularizers.of_covariance import CovarianceRegularizer, degrees_of_freedom
from vcreg_jax.regularizers.statistics import num_shards, sample_axes, shape_in_groups

SCALES = ("equation_4", "algorithm_1")


@pytree("alpha", "beta")
@dataclass(frozen=True)
class VCReg(CovarianceRegularizer):
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
    would be left, k is made smaller, down to 1. With k above 1 `gradient(h)` has the dtype of `h`.

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

    weights = ("alpha", "beta")
    missing_for_one_feature = "no covariance term"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta is not None and not self.delta > 0:
            raise ValueError(f"VCReg needs delta > 0, or None for no clipping, got {self.delta}.")
        if not self.eps > 0:
            raise ValueError(f"VCReg needs eps > 0 (zero variance would divide by 0), got {self.eps}.")
        if self.scale not in SCALES:
            raise ValueError(f"VCReg needs scale to be one of {', '.join(map(repr, SCALES))}, got {self.scale!r}.")
        if not isinstance(self.sample, int) or isinstance(self.sample, bool) or self.sample < 1:
            raise ValueError(f"VCReg needs sample >= 1, a whole number (1 for no sampling), got {self.sample!r}.")

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """Return Eqs. 2-4 and 7 of the rows that count, written out."""
        stride = sampling.stride(h.shape, self.sample, num_shards(axes))
        h, keep = sampling.keep(h, stride), sampling.keep_mask(keep, stride)
        return super().penalty_of(h, keep, axes)

    def of_covariance(self, cov: Array, n: Any) -> Array:
        """Eqs. 2-4 and 7, as a function of the covariance of n samples."""
        d = len(cov)
        std = jnp.sqrt(jnp.diagonal(cov) + self.eps)
        variance_term = self.alpha * jnp.maximum(0.0, 1.0 - std).mean()
        off = jnp.where(jnp.eye(d, dtype=bool), 0.0, cov)
        clipped = off if self.delta is None else jnp.clip(off, -self.delta, self.delta)
        costs = clipped * (2 * off - clipped)  # off^2, and beyond delta 2 delta abs(off) - delta^2
        factor = degrees_of_freedom(n) if self.scale == "algorithm_1" else 1
        return variance_term + self.beta * factor * costs.sum() / max(d * (d - 1), 1)

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """Return x M, the gradient of the same."""
        if (stride := sampling.stride(h.shape, self.sample, num_shards(axes))) == 1:
            return super().gradient_of(h, keep, axes, samples_spec)
        rows = samples_spec and PartitionSpec(*samples_spec[:1])  # the positions that are left may not divide
        of_kept = super().gradient_of(sampling.keep(h, stride), sampling.keep_mask(keep, stride), axes, rows)
        # A TPU writes the whole map to memory: not in float32, since the sum with the incoming gradient is rounded.
        return sampling.put_back(of_kept.astype(h.dtype), h.shape, stride)

    def matrix(self, cov: Array, n: Any) -> Array:
        """M, the symmetric matrix with `gradient = x @ M`, from the covariance of n samples."""
        d, degrees = cov.shape[-1], degrees_of_freedom(n)
        on_diagonal = jnp.eye(d, dtype=bool)
        # Elementwise, since a diagonal taken out would be a kernel of its own on accelerators, and so what follows it.
        variances = jnp.where(on_diagonal, cov + self.eps, 1.0)
        hinge = jnp.where(variances < 1.0, lax.rsqrt(variances), 0.0)
        to_unit_variance = jnp.asarray(self.alpha, cov.dtype) / (d * degrees) * hinge
        divisor = 1 if self.scale == "algorithm_1" else degrees
        off = cov if self.delta is None else jnp.clip(cov, -self.delta, self.delta)
        to_zero_covariance = 4 * jnp.asarray(self.beta, cov.dtype) / (float(max(d * (d - 1), 1)) * divisor) * off
        return jnp.where(on_diagonal, -to_unit_variance, to_zero_covariance)

    def stride(self, h: Float[Array, "*samples d"]) -> int:
        """Return the stride at which it looks at `h` along axes of positions: `sample`, or less where `h` is small.

        Args:
          h: features `(*samples, d)`, or their shape and dtype.
        """
        axes = sample_axes(h, self.axis_name)
        if self.scope == "global":
            return sampling.stride(h.shape, self.sample, num_shards(axes))
        return sampling.stride(shape_in_groups(h, self.scope, axes)[1:], self.sample)
