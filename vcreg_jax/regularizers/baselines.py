"""The regularizers that the paper's Table 2 sets beside VCReg: DeCov and WLD-Reg.

Functions `h -> h` like VCReg, made for the input of the classifier: `Sites(features=DeCov(...))`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vcreg_jax.regularizers import of_batch
from vcreg_jax.regularizers.add_gradient import pytree
from vcreg_jax.regularizers.of_covariance import CovarianceRegularizer, degrees_of_freedom
from vcreg_jax.regularizers.statistics import on_shards, statistics_dtype, vary_with


@pytree("weight")
@dataclass(frozen=True)
class DeCov(CovarianceRegularizer):
    """Regularize features by DeCov: half the squared off-diagonal covariances, summed.

    It is applied as `VCReg` is, usually to the input of the classifier: `Sites(features=DeCov(...))`. With features `h`
    of shape `(*samples, d)`, n samples, x = h - mean over samples and C = x'x / n, the penalty is

        weight / 2 * sum_{i != j} C_ij^2                                       DeCov, Eq. 2

    and its gradient 2 weight / n * x offdiag(C). It is Eq. 4 of the VCReg paper with
    beta = weight d (d - 1) / 2 * ((n - 1) / n)^2: not averaged over pairs, so it grows with the width. It takes one
    matrix product, and at most one all-reduce over a sharded batch.

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

    missing_for_one_feature = "nothing"

    def of_covariance(self, cov: Array, n: Any) -> Array:
        """The formula above, by the unbiased covariance."""
        off = jnp.where(jnp.eye(len(cov), dtype=bool), 0.0, cov) * (degrees_of_freedom(n) / n)
        return self.weight / 2 * (off**2).sum()


@pytree("diversity", "activation")
@dataclass(frozen=True)
class WLDReg(of_batch.BatchRegularizer):
    """Regularize features by WLD-Reg: features are to differ from each other on the batch.

    It is applied as `VCReg` is, usually to the input of the classifier: `Sites(features=WLDReg(...))`. With features
    `h` of shape `(*samples, d)` and n samples j, the similarity of two features a and b is

        s_ab = 1 / n * sum_j exp(-gamma (h_ja - h_jb)^2)

    and the penalty is `diversity` times

        sum_{a != b} s_ab     variant "direct"
        -det S                variant "det"
        -log det S            variant "logdet"

    plus `activation` / n * sum_j |h_j|^2, without which features could grow apart by scale alone. S is symmetric
    and positive semidefinite with a diagonal of ones. It takes n d^2 exponentials twice, d rows of n d at a time, and
    one all-reduce over a sharded batch.

    Args:
      diversity: weight of the similarities, at least 0; a number or a traced scalar.
      activation: weight of the mean squared norm, at least 0; a number or a traced scalar.
      variant: "direct", "det" or "logdet", as above.
      gamma: how fast similarity falls with distance, above 0, in one over the features' unit squared.
      jitter: times the identity, added to S under both determinants, above 0; else two equal features would make
        log det S infinite.
      scope: whose similarities, as for `VCReg`.
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
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None

    weights = ("diversity", "activation")
    fewest_rows = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "jitter"):
            if not getattr(self, name) > 0:
                raise ValueError(f"WLDReg needs {name} > 0, got {getattr(self, name)}.")
        if self.variant not in ("direct", "det", "logdet"):
            raise ValueError(f'WLDReg needs variant "direct", "det" or "logdet", got {self.variant!r}.')

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """See `of_batch.BatchRegularizer`."""
        n, rows = of_batch.count_of(h, keep, axes), h.astype(statistics_dtype(h))
        squared_norms = (rows**2).sum()
        squared_norms = lax.psum(squared_norms, axes) if axes else squared_norms
        return self._unlikeness(self._similarities(rows, keep, axes=axes) / n) + self.activation * squared_norms / n

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """See `of_batch.BatchRegularizer`."""
        n, rows = of_batch.count_of(h, keep, axes), h.astype(statistics_dtype(h))
        similarity = on_shards(self._similarities, rows, keep, axes=axes, samples_spec=samples_spec) / n
        pull = jax.grad(self._unlikeness)(similarity) / n
        by_similarity = on_shards(
            self._pulled, rows, keep, pull, axes=axes, samples_spec=samples_spec, returns_rows=True
        )
        return by_similarity + 2 * jnp.asarray(self.activation, rows.dtype) / n * rows

    def _similarities(self, rows: Array, keep: Array | None, *, axes: tuple[str, ...]) -> Float[Array, "d d"]:
        """n S, summed over all shards along `axes`."""
        flat = rows.reshape(-1, rows.shape[-1])

        @jax.checkpoint
        def of_feature(feature: Array) -> Array:
            likeness = jnp.exp(-self.gamma * (feature[:, None] - flat) ** 2)
            return (likeness if keep is None else jnp.where(keep.reshape(-1, 1), likeness, 0.0)).sum(axis=0)

        total = lax.map(of_feature, flat.T)
        return lax.psum(total, axes) if axes else total

    def _pulled(self, rows: Array, keep: Array | None, pull: Array, *, axes: tuple[str, ...]) -> Array:
        """The gradient with respect to this shard's rows, from `pull`, the gradient with respect to n S."""
        del axes  # the rows of other shards do not move with these
        (pull,) = vary_with(rows, pull)
        return jax.vjp(lambda rows: self._similarities(rows, keep, axes=()), rows)[1](pull)[0]

    def _unlikeness(self, similarity: Array) -> Array:
        if self.variant == "direct":
            return self.diversity * (similarity.sum() - jnp.trace(similarity))
        identity = jnp.eye(len(similarity), dtype=similarity.dtype)
        sign, logdet = jnp.linalg.slogdet(similarity + self.jitter * identity)
        return self.diversity * (-logdet if self.variant == "logdet" else -sign * jnp.exp(logdet))
