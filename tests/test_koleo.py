"""KoLeo against nearest neighbours found by SciPy's trees and by PyTorch's `cdist`."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import features


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


@pytest.mark.parametrize("shape", [(9, 4), (3, 2, 2, 5)], ids=str)
def test_formula(x64, shape):
    everywhere.check_formula(make(), in_numpy, in_torch, features(*shape))


@pytest.mark.parametrize("way", everywhere.WAYS)
def test_eight_devices_are_one(x64, way):
    everywhere.check_devices(make, in_torch, way)


def test_groups_and_masks(x64):
    everywhere.check_groups(make, in_torch)
    everywhere.check_masks(make, in_torch)


@pytest.mark.optimized
def test_two_all_gathers_no_all_reduce_and_nothing_in_groups():
    everywhere.check_collectives(make, Counter({"all-gather": 2}), np.float32(features(16, 5)))


def test_weights(x64):
    everywhere.check_weight(make)


def test_dtypes_and_models():
    everywhere.check_sites_and_attach(make())


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
    assert make().penalty(rows[:1]) == 0.0
    np.testing.assert_array_equal(everywhere.added(make(), rows[:1]), 0.0)
    with pytest.raises(ValueError, match="eps > 0"):
        make(eps=0.0)


def test_neighbours_of_one_device_alone_are_another_penalty(x64):
    """Why the global scope gathers: DINOv2's form changes with the number of devices."""
    rows = jnp.asarray(features(32, 4))
    values = [float(make(scope=groups).penalty(rows)) for groups in (1, 2, 8)]
    assert values[0] == float(make().penalty(rows)) and values[0] > values[1] + 0.05 > values[2] + 0.1
