"""Weak-SIGReg: the covariance of features, seen through random projections, is to be the identity."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from vcreg_jax.regularizers.add_gradient import pytree
from vcreg_jax.regularizers.directions import gaussian
from vcreg_jax.regularizers.of_covariance import CovarianceRegularizer


@pytree("weight", "step")
@dataclass(frozen=True)
class WeakSIGReg(CovarianceRegularizer):
    """Regularize features by Weak-SIGReg: their sketched covariance is to be the identity.

    Features `h` have the shape `(*samples, d)`. With x = h - mean over samples, S a d x k matrix of independent
    normal entries of variance 1 / d, k = `sketch`, and C = (x S)'(x S) / (n - 1), the penalty is

        weight * |C - I|     the Frobenius norm, not squared

    Where d <= `sketch` the covariance is that of the features themselves: S = I. At C = I, where the norm has no
    gradient, nothing is added. With fewer than two rows nothing is, and the penalty is 0.

    S is that of `seed` and `step`, as for `SIGReg`: draw a new one by `reg.at_step(step)` or `vc.at_step`.
    At most one all-reduce over a sharded batch, none in groups. It takes 4 n d k operations, twice.

    Source: Akbar, "Weak-SIGReg" (arXiv 2603.05924), Figure 3, which is the code; the paper has no equation of it.
    `sketch` and `weight` are those of its Appendix A.1. There `n - 1 + 1e-6` stands for n - 1.

    Args:
      weight: at least 0; a number or a traced scalar.
      sketch: k, how many directions the covariance is sketched to.
      scope: whose statistics, as for `VCReg`.
      axis_name: over whose devices the batch is split, as for `VCReg`.
      seed: of the directions.
      step: of the directions; an integer or a traced one.

    Raises:
      ValueError: for a negative weight, a sketch of less than one direction, an unknown `scope`; and when called on
        integers, on fewer than two axes, or on what `scope` does not divide.
    """

    weight: float | Array = 0.1
    sketch: int = 64
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None
    seed: int = 0
    step: int | Int[Array, ""] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sketch >= 1:
            raise ValueError(f"WeakSIGReg needs sketch >= 1, got {self.sketch}.")

    def at_step(self, step: int | Int[Array, ""], /) -> "WeakSIGReg":
        """The same regularizer with the directions of this step."""
        return replace(self, step=step)

    def directions(self, d: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "d k"] | None:
        """S of this step for d features; None where it is the identity."""
        return gaussian(self.seed, self.step, d, self.sketch, dtype) / d**0.5 if d > self.sketch else None

    def of_covariance(self, cov: Array, n: Any) -> Array:
        """The norm above."""
        off = ((cov - jnp.eye(len(cov), dtype=cov.dtype)) ** 2).sum()
        return self.weight * jnp.where(off > 0, jnp.sqrt(jnp.where(off > 0, off, 1.0)), 0.0)
