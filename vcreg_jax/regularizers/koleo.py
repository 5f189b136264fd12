"""KoLeo: every row is to be far from its nearest neighbour on the sphere."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from vcreg_jax.regularizers import of_batch
from vcreg_jax.regularizers.add_gradient import pytree
from vcreg_jax.regularizers.statistics import num_samples, on_shards, statistics_dtype


@pytree("weight")
@dataclass(frozen=True)
class KoLeo(of_batch.BatchRegularizer):
    """Regularize features by KoLeo: every row is to be far from its nearest neighbour on the sphere.

    The Kozachenko-Leonenko estimate of the entropy of features `h` of shape `(*samples, d)` is to be large. With u
    the n rows over their lengths and r_i = min_{j != i} |u_i - u_j|, the penalty is

        - weight / n * sum_i log(r_i + eps)

    A row is pulled away from its nearest neighbour and from those whose nearest it is. Of rows that are equal neither
    moves: the distance has no gradient there. With fewer than two rows nothing is added, and the penalty is 0.

    **What it needs of other devices.** Neighbours are looked for among all rows of the batch, so in the global scope
    every device gathers all rows: one all-gather of n d numbers and one of n indices, no all-reduce. No smaller
    message finds the same neighbours. `scope=k` looks within each of k groups and sends nothing: with one group a
    device it is what DINOv2 does, and another penalty, since a neighbour among fewer rows is farther away.

    It takes n^2 d operations: meant for one row an image, `Sites(features=KoLeo())`, not for maps.

    Source: Sablayrolles et al., "Spreading vectors for similarity search" (ICLR 2019, arXiv 1806.03198), which takes
    log(n r_i), the same but for a constant; rows of unit length, eps and the form above are DINOv2's,
    https://github.com/facebookresearch/dinov2/blob/05c66df0cfa837710197d4769158c87e36afad2c/dinov2/loss/koleo_loss.py
    There eps is added to every difference as well.

    Args:
      weight: at least 0; a number or a traced scalar.
      eps: added to distances under the logarithm, above 0.
      scope: among whose rows neighbours are looked for, as for `VCReg`.
      axis_name: over whose devices the batch is split, as for `VCReg`.

    Raises:
      ValueError: for a negative weight, `eps` not above 0, an unknown `scope`; and when called on integers, on fewer
        than two axes, or on what `scope` does not divide.
    """

    weight: float | Array = 0.1
    eps: float = 1e-8
    scope: Literal["global"] | int = "global"
    axis_name: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eps > 0:
            raise ValueError(f"KoLeo needs eps > 0 (equal rows would have an infinite penalty), got {self.eps}.")

    def penalty_of(self, h: Array, keep: Array | None, axes: tuple[str, ...]) -> Array:
        """See `of_batch.BatchRegularizer`."""
        n = of_batch.count_of(h, keep, axes)
        own, keep = _unit_rows(h, keep)
        rows, kept = _gathered(own, axes), keep if keep is None else _gathered(keep, axes)
        apart = own - jnp.take(rows, _nearest(own, rows, kept, axes), axis=0)
        squared = (apart**2).sum(axis=1)
        distance = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
        logs = jnp.log(distance + self.eps)
        total = (logs if keep is None else jnp.where(keep, logs, 0.0)).sum()
        total = lax.psum(total, axes) if axes else total
        return jnp.where(n > 1, -self.weight * total / n, 0.0)

    def gradient_of(
        self, h: Array, keep: Array | None, axes: tuple[str, ...], samples_spec: PartitionSpec | None
    ) -> Array:
        """See `of_batch.BatchRegularizer`."""
        if num_samples(h, axes) < 2:
            return jnp.zeros(h.shape, statistics_dtype(h))
        n = of_batch.count_of(h, keep, axes)
        pushed = on_shards(self._pushes, h, keep, axes=axes, samples_spec=samples_spec, returns_rows=True)
        pushed = jnp.where(n > 1, jnp.asarray(self.weight, pushed.dtype) / n, 0.0) * pushed
        # Through the division by the rows' lengths.
        (moved,) = jax.vjp(_over_lengths, h.astype(pushed.dtype))[1](pushed)
        return moved if keep is None else jnp.where(keep[..., None], moved, 0.0)

    def _pushes(self, h: Array, keep: Array | None, *, axes: tuple[str, ...]) -> Array:
        """The gradient of -sum_i log(r_i + eps) with respect to this shard's rows of unit length."""
        own, keep = _unit_rows(h, keep)
        rows, kept = _gathered(own, axes), keep if keep is None else _gathered(keep, axes)
        nearest = _gathered(_nearest(own, rows, kept, axes), axes)
        apart = rows - jnp.take(rows, nearest, axis=0)
        distance = jnp.sqrt((apart**2).sum(axis=1, keepdims=True))
        counts = distance > 0 if kept is None else kept[:, None] & (distance > 0)
        push = jnp.where(counts, -apart / (jnp.where(counts, distance, 1.0) * (distance + self.eps)), 0.0)
        pushed = push.at[nearest].add(-push)
        start = lax.axis_index(axes) * len(own) if axes else 0
        return lax.dynamic_slice_in_dim(pushed, start, len(own)).reshape(h.shape)


def _unit_rows(h: Array, keep: Array | None) -> tuple[Float[Array, "n d"], Bool[Array, " n"] | None]:
    rows = _over_lengths(h.astype(statistics_dtype(h)).reshape(-1, h.shape[-1]))
    return rows, keep if keep is None else keep.reshape(-1)


def _over_lengths(h: Array) -> Array:
    squared = (h**2).sum(axis=-1, keepdims=True)
    return jnp.where(squared > 0, h * lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _gathered(own: Array, axes: tuple[str, ...]) -> Array:
    return lax.all_gather(own, axes, tiled=True) if axes else own


def _nearest(
    own: Float[Array, "m d"], rows: Float[Array, "n d"], kept: Bool[Array, " n"] | None, axes: tuple[str, ...]
) -> Int[Array, " m"]:
    """Of each row of this shard, which of all rows is nearest to it but is not itself."""
    own, rows = lax.stop_gradient((own, rows))
    first = lax.axis_index(axes) * len(own) if axes else 0
    left_out = (first + jnp.arange(len(own)))[:, None] == jnp.arange(len(rows))[None]  # itself
    left_out = left_out if kept is None else left_out | ~kept[None]
    likeness = jnp.where(left_out, -jnp.inf, own @ rows.T)
    return jnp.argmax(likeness, axis=1)
