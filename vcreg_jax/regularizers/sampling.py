"""Which rows of a map of features a sampled regularizer looks at.

Positions next to each other hold nearly the same features, and a map has many more of them than a covariance needs:
400,000 rows in the first stage of a ResNet-50 for 256 features. So every k-th along each axis of positions may do.
Whole images are kept: a batch is where a mesh splits it, and slicing it would move features between devices.
"""

import math

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Shaped

# A covariance from n rows has a relative error of about sqrt(effective rank / n), at worst sqrt(d / n) = 0.41. With 4
# rows a feature the cosine to the exact gradient was 0.4 to 0.6 in a trained ResNet-32 (docs/sampled.md).
ROWS_PER_FEATURE = 6


def stride(shape: tuple[int, ...], most: int, shards: int = 1) -> int:
    """The largest stride up to `most` that leaves at least `ROWS_PER_FEATURE` rows a feature; 1 if none does.

    The rows are those of features of `shape` and as many more on each other shard of a `shard_map`.
    """
    batch, *positions, d = shape
    if not positions:
        return 1

    def rows_left(k: int) -> int:
        return shards * batch * math.prod(-(-size // k) for size in positions)

    return next((k for k in range(most, 1, -1) if rows_left(k) >= ROWS_PER_FEATURE * d), 1)


def keep(h: Shaped[Array, "batch *positions d"], stride: int) -> Shaped[Array, "batch *kept d"]:
    """Every `stride`-th index along each axis of positions, as many as there can be and in the middle."""
    starts = [_first(size, stride) for size in h.shape[1:-1]]
    strides = (1, *(stride for _ in starts), 1)
    return lax.slice(h, (0, *starts, 0), h.shape, strides)


def keep_mask(mask: Bool[Array, " batch *positions"] | None, stride: int) -> Bool[Array, " batch *kept"] | None:
    """`keep` for a mask, which has no axis of features."""
    return None if mask is None else keep(mask[..., None], stride)[..., 0]


def put_back(
    kept: Float[Array, "batch *kept d"], shape: tuple[int, ...], stride: int
) -> Float[Array, "batch *positions d"]:
    """The transpose of `keep`: `kept` at the positions it came from in an array of `shape`, zeros elsewhere."""
    padding = [(0, 0, 0)]
    for size, count in zip(shape[1:-1], kept.shape[1:-1], strict=True):
        first = _first(size, stride)
        padding.append((first, size - first - (count - 1) * stride - 1, stride - 1))
    return lax.pad(kept, jnp.zeros((), kept.dtype), (*padding, (0, 0, 0)))


def _first(size: int, stride: int) -> int:
    return max(size - 1, 0) % stride // 2
