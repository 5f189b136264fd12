"""Position embeddings of a ViT carried over to another image size."""

import math

import jax
import numpy as np


def resize_positions(positions: np.ndarray, tokens: int, *, align_corners: bool) -> np.ndarray:
    """`positions`, shape (1, 1 + n * n, d), interpolated bicubically to shape (1, tokens, d); tokens = 1 + m * m.

    The first token, which is the class token's, stays as it is.

    Args:
      positions: the class token's and n * n patches' embeddings, row by row.
      tokens: how many there are to be.
      align_corners: True as torchvision's `interpolate_embeddings`: the outer patches keep their embeddings, no
        antialiasing, Keys' cubic with a = -0.75. False as timm's `resample_abs_pos_embed`: patches are areas that
        fill the same square, with antialiasing, a = -0.5.

    Raises:
      ValueError: when the patches of either do not form a square.
    """
    old, new = (math.isqrt(count - 1) for count in (positions.shape[1], tokens))
    if (old**2 + 1, new**2 + 1) != (positions.shape[1], tokens):
        raise ValueError(f"Position embeddings must be 1 + n * n, got {positions.shape[1]} to become {tokens}.")
    weights = _aligned_cubic(old, new) if align_corners else _antialiased_cubic(old, new)
    grid = positions[0, 1:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True).reshape(1, new**2, -1)
    return np.concatenate([positions[:, :1], resized.astype(positions.dtype)], axis=1)


def _aligned_cubic(old: int, new: int) -> np.ndarray:
    """(new, old) weights of torch's `interpolate(mode="bicubic", align_corners=True)` along one axis."""
    at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        source = np.floor(at) + tap
        # Beyond the border the outermost value is repeated.
        np.add.at(weights, (np.arange(new), np.clip(source, 0, old - 1).astype(int)), _keys(at - source, a=-0.75))
    return weights


def _antialiased_cubic(old: int, new: int) -> np.ndarray:
    """(new, old) weights of `jax.image.resize(method="cubic")`, which are those of torch's with antialiasing."""
    return np.asarray(jax.image.resize(np.eye(old, dtype=np.float32), (new, old), method="cubic", antialias=True))


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981)."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
