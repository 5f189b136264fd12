"""SIGReg of LeJEPA: features are to be distributed as a standard normal, tested along random directions."""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from vcreg_jax.regularizers import of_batch
from vcreg_jax.regularizers.add_gradient import pytree
from vcreg_jax.regularizers.directions import gaussian
from vcreg_jax.regularizers.statistics import on_shards, projected, statistics_dtype


@pytree("weight", "step")
@dataclass(frozen=True)
class SIGReg(of_batch.BatchRegularizer):
    """Regularize features by SIGReg: they are to be distributed as a standard normal.

    This is sketched isotropic Gaussian regularization of features `h` of shape `(*samples, d)`. With n samples,
    random directions a of unit length and y = a . h, the penalty is `weight` times the mean over directions of the
    Epps-Pulley statistic

        n * integral |1 / n sum_j exp(i t y_j) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

    over -t_max to t_max by the trapezoidal rule. The integrand is even, so `knots` lie on 0 to `t_max` and count twice.
    The target's mean is 0, so nothing is centred. Mean and spread of the features are felt, unlike by VCReg.

    `scale` says what `weight` weighs. "statistic" is the formula above: a sum over samples, which grows with the batch,
    the number of positions and the chips that the batch grows with. "distance" leaves out the n: the same strength for
    any number of samples. Either has the same strength on any number of devices for the same batch.

    The directions are those of `seed` and `step` and the same on all devices. Draw new ones every step: in your own
    loss by `reg.at_step(step)`, in a model by `vc.at_step(model, step)`; both take a traced step and compile once.

    At most one all-reduce over a sharded batch, of `2 * slices * knots` numbers; none in groups. It takes
    `n * slices * d` products, twice in the backward pass, and `n * slices * knots` sines and cosines.

    Source: Balestriero & LeCun, "LeJEPA" (arXiv 2511.08544), Definition 2 and Eq. (Epps-Pulley) of Section 4.2.
    Algorithm 1 there has 256 directions and 17 knots from -5 to 5: `SIGReg(t_max=5.0, knots=9)`. The defaults are those
    of the official code, https://github.com/rbalestr-lab/lejepa/blob/2f2d9704bf9326ae3f36c8c50cfde257b61458e8/MINIMAL.md

    Args:
      weight: at least 0; a number or a traced scalar.
      slices: how many directions.
      knots: how many points from 0 to `t_max`.
      t_max: where the integral ends, above 0.
      scale: "statistic" or "distance", as above.
      scope: whose statistics, as for `VCReg`.
      axis_name: over whose devices the batch is split, as for `VCReg`.
      seed: of the directions.
      step: of the directions; an integer or a traced one.

    Raises:
      ValueError: for a negative weight, fewer than one direction or two knots, `t_max` not above 0, an unknown `scale`
        or `scope`; and when called on integers, on fewer than two axes, or on what `scope` does not divide.
    """

    weight: float | Array = 0.02
    slices: int = 256
    knots: int = 17
    t_max: float = 3.0
    scale: Literal["statistic", "distance"] = "statistic"
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None
    seed: int = 0
    step: int | Int[Array, ""] = 0

    fewest_rows = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.slices >= 1 and self.knots >= 2 and self.t_max > 0):
            raise ValueError(
                f"SIGReg needs slices >= 1, knots >= 2 and t_max > 0, got {self.slices}, {self.knots} and {self.t_max}."
            )
        if self.scale not in ("statistic", "distance"):
            raise ValueError(f'SIGReg needs scale "statistic" or "distance", got {self.scale!r}.')

    def at_step(self, step: int | Int[Array, ""], /) -> "SIGReg":
        """The same regularizer with the directions of this step."""
        return replace(self, step=step)

    def directions(self, d: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "d slices"]:
        """The directions of this step for d features, of unit length."""
        drawn = gaussian(self.seed, self.step, d, self.slices, dtype)
        return drawn / jnp.linalg.norm(drawn, axis=0, keepdims=True)

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """See `of_batch.BatchRegularizer`."""
        n, (t, normal, weights) = of_batch.count_of(h, keep, axes), self._knots(h)
        sums = _sums(h.astype(statistics_dtype(h)), keep, self.directions(h.shape[-1], t.dtype), t, axes=axes)
        cosines, sines = sums / n
        distance = (((cosines - normal) ** 2 + sines**2) * weights).sum(axis=1).mean()
        return self.weight * distance * (n if self.scale == "statistic" else 1)

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """See `of_batch.BatchRegularizer`."""
        n, (t, normal, weights) = of_batch.count_of(h, keep, axes), self._knots(h)
        directions = self.directions(h.shape[-1], t.dtype)
        cosines, sines = on_shards(_sums, h, keep, directions, t, axes=axes, samples_spec=samples_spec) / n
        # With u = t y, half of n |mean exp(i u) - normal|^2 has the derivative to one y of
        # t ((mean sin u) cos u - (mean cos u - normal) sin u).
        pull = 2 * jnp.asarray(self.weight, t.dtype) / self.slices * weights * t
        u = projected(h, directions)[..., None] * t.reshape((1,) * h.ndim + (-1,))
        per_knot = jnp.cos(u) * _over_samples(pull * sines, h) - jnp.sin(u) * _over_samples(
            pull * (cosines - normal), h
        )
        own = per_knot.sum(axis=-1) / (1 if self.scale == "statistic" else n)
        own = own if keep is None else jnp.where(keep[..., None], own, 0.0)
        return projected(own.astype(h.dtype), directions.T)

    def _knots(self, h: Array) -> tuple[Array, Array, Array]:
        """Of shape (1, knots): where the integrand is taken, the target's value there, and what it counts."""
        t = jnp.linspace(0.0, self.t_max, self.knots, dtype=statistics_dtype(h))[None]
        normal, spacing = jnp.exp(-(t**2) / 2), self.t_max / (self.knots - 1)
        inner = jnp.ones_like(t).at[0, 0].set(0.5).at[0, -1].set(0.5)
        return t, normal, 2 * spacing * inner * normal


def _sums(
    h: Array, keep: Array | None, directions: Array, t: Array, *, axes: tuple[str, ...]
) -> Float[Array, "2 slices knots"]:
    """Sums over samples of the cosine and the sine of t times the projections."""
    u = projected(h, directions)[..., None] * t.reshape((1,) * h.ndim + (-1,))
    samples = tuple(range(h.ndim - 1))

    def total(values: Array) -> Array:
        values = values if keep is None else jnp.where(keep[..., None, None], values, 0.0)
        return values.sum(axis=samples)

    sums = jnp.stack([total(jnp.cos(u)), total(jnp.sin(u))])
    return lax.psum(sums, axes) if axes else sums


def _over_samples(values: Float[Array, "slices knots"], h: Array) -> Array:
    return values.reshape((1,) * (h.ndim - 1) + values.shape)
