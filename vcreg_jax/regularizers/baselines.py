"""The regularizers that the paper's Table 2 sets beside VCReg: DeCov and WLD-Reg.

Functions `h -> h` like VCReg, made for the input of the classifier: `Sites(features=DeCov(...))`.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from vcreg_jax.regularizers.add_gradient import add_gradient, pytree
from vcreg_jax.regularizers.statistics import (
    check_axis_name,
    explicit_sharding,
    num_samples,
    of_all_devices,
    sample_axes,
    statistics_dtype,
)
from vcreg_jax.regularizers.vcreg import VCReg


@pytree("weight")
@dataclass(frozen=True)
class DeCov:
    """Regularize features by DeCov: half the squared off-diagonal covariances, summed.

    It is applied as `VCReg` is, usually to the input of the classifier: `Sites(features=DeCov(...))`. With features `h`
    of shape `(*samples, d)`, n samples, x = h - mean over samples and C = x'x / n, the penalty is

        weight / 2 * sum_{i != j} C_ij^2                                       DeCov, Eq. 2

    and its gradient 2 weight / n * x offdiag(C). It is Eq. 4 of the VCReg paper with
    beta = weight d (d - 1) / 2 * ((n - 1) / n)^2, and is computed as that: one matrix product, and at most one
    all-reduce over a sharded batch. Unlike Eq. 4 it is not averaged over pairs, so it grows with the width.

    Args:
      weight: at least 0; a number or a traced scalar.
      scope: whose statistics, as for `VCReg`.
      axis_name: over whose devices the batch is split, as for `VCReg`.

    Raises:
      ValueError: for a negative weight; and when called as for `VCReg`.

    Examples:
      >>> import vcreg_jax as vc
      >>> sites = vc.Sites(features=vc.DeCov(weight=0.1))

    Reference:
      Cogswell et al., "Reducing Overfitting in Deep Networks by Decorrelating Representations" (arXiv 1511.06068),
      Eq. 2. The VCReg paper took its hyper-parameters from the WLD-Reg paper; the value of `weight` used there is
      unverified.
    """

    weight: float | Array = 0.1
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weight, int | float) and not 0 <= self.weight < math.inf:
            raise ValueError(f"DeCov needs weight >= 0, got {self.weight}.")
        check_axis_name("DeCov", self.axis_name)
        VCReg(scope=self.scope)  # which refuses what is no scope

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """Return `h`; the backward pass adds `gradient(h)`."""
        VCReg(scope=self.scope, axis_name=self.axis_name)(h)  # checks the features
        return add_gradient(self, h)

    def scaled(self, weight: float | Array) -> "DeCov":
        """Return the same regularizer times `weight`, for gradient accumulation; see `VCReg.scaled`."""
        return replace(self, weight=self.weight * weight)

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        """Return the formula above for `h` of shape `(*samples, d)`, a scalar in float32 or wider."""
        return self._as_vcreg(h).penalty(h)

    def gradient(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """Return the gradient of `penalty(h)` in closed form, `(*samples, d)` in float32 or wider."""
        return self._as_vcreg(h).gradient(h)

    def _as_vcreg(self, h: Array) -> VCReg:
        groups = 1 if self.scope == "global" else self.scope
        n, d = num_samples(h, sample_axes(h, self.axis_name)) // groups, h.shape[-1] if h.ndim else 0
        per_pair = d * (d - 1) / 2 * ((n - 1) / max(n, 1)) ** 2
        return VCReg(alpha=0.0, beta=self.weight * per_pair, scope=self.scope, axis_name=self.axis_name)


@pytree("diversity", "activation")
@dataclass(frozen=True)
class WLDReg:
    """Regularize features by WLD-Reg: features are to differ from each other on the batch.

    It is applied as `VCReg` is, usually to the input of the classifier: `Sites(features=WLDReg(...))`. With features
    `h` of shape `(*samples, d)` and n samples j, the similarity of two features a and b is

        s_ab = 1 / n * sum_j exp(-gamma (h_ja - h_jb)^2)

    and the penalty is `diversity` times

        sum_{a != b} s_ab     variant "direct"
        -det S                variant "det"
        -log det S            variant "logdet"

    plus `activation` / n * sum_j |h_j|^2, without which features could grow apart by scale alone. S is symmetric
    and positive semidefinite with a diagonal of ones. It takes n d^2 exponentials, d rows of n d at a time, forward
    again in the backward pass.

    Args:
      diversity: weight of the similarities, at least 0; a number or a traced scalar.
      activation: weight of the mean squared norm, at least 0; a number or a traced scalar.
      variant: "direct", "det" or "logdet", as above.
      gamma: how fast similarity falls with distance, above 0, in one over the features' unit squared.
      jitter: times the identity, added to S under both determinants, above 0; else two equal features would make
        log det S infinite.
      axis_name: over whose devices the batch is split, as for `VCReg`.

    Raises:
      ValueError: for weights that are negative, `gamma` or `jitter` not above 0, an unknown variant; and when
        called on integers or on fewer than two axes.

    Examples:
      >>> import vcreg_jax as vc
      >>> sites = vc.Sites(features=vc.WLDReg(variant="logdet"))

    Reference:
      Laakom et al., "WLD-Reg: A Data-dependent Within-layer Diversity Regularizer" (AAAI 2023, arXiv 2301.01352). The
      default weights and gamma, and that the activations' term is a mean over samples, are unverified.
    """

    diversity: float | Array = 1e-3
    activation: float | Array = 1e-3
    variant: Literal["direct", "det", "logdet"] = "direct"
    gamma: float = 10.0
    jitter: float = 1e-6
    axis_name: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("diversity", "activation"):
            weight = getattr(self, name)
            if isinstance(weight, int | float) and not 0 <= weight < math.inf:
                raise ValueError(f"WLDReg needs {name} >= 0, got {weight}.")
        for name in ("gamma", "jitter"):
            if not getattr(self, name) > 0:
                raise ValueError(f"WLDReg needs {name} > 0, got {getattr(self, name)}.")
        check_axis_name("WLDReg", self.axis_name)
        if self.variant not in ("direct", "det", "logdet"):
            raise ValueError(f'WLDReg needs variant "direct", "det" or "logdet", got {self.variant!r}.')

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """Return `h`; the backward pass adds `gradient(h)`."""
        if h.ndim < 2 or not jnp.issubdtype(h.dtype, jnp.floating):
            raise ValueError(
                f"WLDReg needs floating-point features of shape (*samples, d) with at least two axes, got "
                f"{h.dtype}{list(h.shape)}."
            )
        return add_gradient(self, h)

    def scaled(self, weight: float | Array) -> "WLDReg":
        """Return the same regularizer with both terms times `weight`, for gradient accumulation; see `VCReg.scaled`."""
        return replace(self, diversity=self.diversity * weight, activation=self.activation * weight)

    def penalty(
        self, h: Float[Array, "*samples d"], /, keep: Bool[Array, "*samples"] | None = None
    ) -> Float[Array, ""]:
        """Return the formula above, a scalar in float32 or wider.

        Args:
          h: features `(*samples, d)`, of a floating dtype.
          keep: which rows count, boolean `(*samples,)`; None counts all.
        """
        if (explicit := explicit_sharding(h)) is None:
            return self._penalty(h, keep)
        with jax.sharding.use_abstract_mesh(explicit[0]):
            return cast(Any, jax.sharding.auto_axes(self._penalty, out_sharding=PartitionSpec()))(h, keep)

    def gradient(
        self, h: Float[Array, "*samples d"], /, keep: Bool[Array, "*samples"] | None = None
    ) -> Float[Array, "*samples d"]:
        """Return `jax.grad(penalty)(h, keep)`, `(*samples, d)` in float32 or wider.

        Args:
          h: features `(*samples, d)`, of a floating dtype.
          keep: which rows count, boolean `(*samples,)`; None counts all.
        """
        return jax.grad(self.penalty)(h, keep).astype(statistics_dtype(h))

    def _penalty(self, h: Array, keep: Array | None) -> Array:
        axes = sample_axes(h, self.axis_name)
        rows = h.astype(statistics_dtype(h)).reshape(-1, h.shape[-1])
        n, d = num_samples(h, axes), h.shape[-1]
        if n == 0:
            return jnp.zeros((), rows.dtype)
        weights = jnp.ones((len(rows), 1), rows.dtype)
        if keep is not None:
            weights = keep.reshape(-1, 1).astype(rows.dtype)
            rows = jnp.where(weights > 0, rows, 0.0)  # where left out they may be anything, NaN included
            total = (weights + 0 * rows[:, :1]).sum()  # split over the shards as the rows are
            n = jnp.maximum(lax.psum(total, axes) if axes else total, 1)

        def over_samples(values: Array) -> Array:
            total = values.sum(axis=0)
            return (lax.psum(total, axes) if axes else total) / n

        @functools.partial(jax.checkpoint)
        def similarities(feature: Array) -> Array:
            return (weights * jnp.exp(-self.gamma * (feature[:, None] - rows) ** 2)).sum(axis=0)

        per_shard = lax.map(similarities, rows.T)
        similarity = (lax.psum(per_shard, axes) if axes else per_shard) / n
        activation = over_samples((rows**2).sum(axis=1))
        penalty = self.diversity * self._likeness(similarity, d) + self.activation * activation
        return penalty if self.axis_name is None else of_all_devices(penalty, h, axes)

    def _likeness(self, similarity: Array, d: int) -> Array:
        if self.variant == "direct":
            return similarity.sum() - jnp.trace(similarity)
        sign, logdet = jnp.linalg.slogdet(similarity + self.jitter * jnp.eye(d, dtype=similarity.dtype))
        return -logdet if self.variant == "logdet" else -sign * jnp.exp(logdet)
