"""KoLeo against nearest neighbours found by SciPy's trees and by PyTorch's `cdist`."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import Case, features


def make(**fields) -> vc.KoLeo:
    return vc.KoLeo(**{"weight": 0.7} | fields)


def in_numpy(rows: np.ndarray) -> float:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = KDTree(units).query(units, k=2)[0][:, 1]
    return -0.7 * float(np.log(distances + 1e-8).mean())


def in_torch(rows: torch.Tensor) -> torch.Tensor:
    units = torch.nn.functional.normalize(rows, dim=1)
    distances = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")
    others = distances[~torch.eye(len(rows), dtype=torch.bool)].reshape(len(rows), -1)
    return -0.7 * torch.log(others.min(dim=1).values + 1e-8).mean()


CASES = {"KoLeo": Case(make, in_numpy, in_torch, ("all-gather", "all-gather"))}


def test_bfloat16_stays_bfloat16():
    """Of rows whose neighbours rounding does not change."""
    rows = np.concatenate([np.eye(5), 0.9 * np.eye(5) + 0.2])
    half = jnp.asarray(rows, jnp.bfloat16)
    gradient = everywhere.added(make(), half)
    expected = everywhere.by_torch(in_torch, np.asarray(half, np.float64))[1]
    assert gradient.dtype == jnp.bfloat16
    assert np.abs(np.float64(gradient) - expected).max() <= 0.02 * np.abs(expected).max()


def test_equal_rows_and_rows_of_zeros_are_finite():
    rows = jnp.asarray([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [3.0, -1.0]])
    assert np.isfinite(make().penalty(rows)) and np.isfinite(everywhere.added(make(), rows)).all()
    with pytest.raises(ValueError, match="eps > 0"):
        make(eps=0.0)


def test_neighbours_of_one_device_alone_are_another_penalty(x64):
    """Why the global scope gathers: DINOv2's form changes with the number of devices."""
    rows = jnp.asarray(features(32, 4))
    values = [float(make(scope=groups).penalty(rows)) for groups in (1, 2, 8)]
    assert values[0] == float(make().penalty(rows)) and values[0] > values[1] + 0.05 > values[2] + 0.1
