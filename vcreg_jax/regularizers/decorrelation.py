"""Decorrelation: the correlations of different features are to be 0, whatever their spread."""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax

from vcreg_jax.regularizers.add_gradient import pytree
from vcreg_jax.regularizers.of_covariance import CovarianceRegularizer


@pytree("weight")
@dataclass(frozen=True)
class Decorrelation(CovarianceRegularizer):
    """Regularize features by decorrelation: different features are to be uncorrelated, whatever their spread.

    Features `h` have the shape `(*samples, d)`. With C the unbiased covariance of the n samples and R_ij = C_ij /
    sqrt((C_ii + eps) (C_jj + eps)), the penalty is

        weight / (d (d - 1)) * sum_{i != j} R_ij^2

    It does not change when a feature is scaled. So it neither raises nor bounds any spread: unlike VCReg's covariance
    term it cannot be lowered by shrinking features, and unlike VCReg it does not keep them from vanishing.

    At most one all-reduce over a sharded batch, none in groups; 4 n d^2 operations. With fewer than two rows or
    features nothing is added, and the penalty is 0.

    Source: the redundancy term of Zbontar et al., "Barlow Twins" (arXiv 2103.03230), Eq. 1-2, with one view in the
    place of both, where the invariance term is 0. There the sum over pairs is not divided by their number.

    Args:
      weight: at least 0; a number or a traced scalar.
      eps: added to variances under the root, above 0.
      scope: whose statistics, as for `VCReg`.
      axis_name: over whose devices the batch is split, as for `VCReg`.

    Raises:
      ValueError: for a negative weight, `eps` not above 0, an unknown `scope`; and when called on integers, on fewer
        than two axes, or on what `scope` does not divide.
    """

    weight: float | Array = 1.0
    eps: float = 1e-5
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None

    missing_for_one_feature = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps > 0:
            raise ValueError(f"Decorrelation needs eps > 0 (zero variance would divide by 0), got {self.eps}.")

    def of_covariance(self, cov: Array, n: Any) -> Array:
        """The mean squared correlation."""
        d = len(cov)
        scale = lax.rsqrt(jnp.diagonal(cov) + self.eps)
        correlations = jnp.where(jnp.eye(d, dtype=bool), 0.0, cov * scale[:, None] * scale[None])
        return self.weight * (correlations**2).sum() / max(d * (d - 1), 1)
