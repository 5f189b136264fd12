"""Weak-SIGReg against NumPy's covariance and PyTorch's, with and without a sketch."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import features


def make(**fields) -> vc.WeakSIGReg:
    return vc.WeakSIGReg(**{"weight": 0.7, "sketch": 3, "step": 2} | fields)


def sketch(reg: vc.WeakSIGReg, d: int) -> np.ndarray:
    drawn = reg.directions(d, jnp.result_type(float))
    return np.eye(d) if drawn is None else np.asarray(drawn, np.float64)


def in_numpy(rows: np.ndarray, reg: vc.WeakSIGReg | None = None) -> float:
    reg = reg or make()
    projected = rows @ sketch(reg, rows.shape[1])
    return float(reg.weight) * float(np.linalg.norm(np.cov(projected, rowvar=False) - np.eye(projected.shape[1])))


def in_torch(rows: torch.Tensor, reg: vc.WeakSIGReg | None = None) -> torch.Tensor:
    reg = reg or make()
    projected = rows @ torch.tensor(sketch(reg, rows.shape[1]))
    return float(reg.weight) * torch.linalg.norm(torch.cov(projected.T) - torch.eye(projected.shape[1]))


@pytest.mark.parametrize("shape", [(9, 4), (3, 2, 2, 5)], ids=str)
@pytest.mark.parametrize("k", [3, 64])
def test_formula(x64, k, shape):
    reg = make(sketch=k)
    everywhere.check_formula(reg, lambda h: in_numpy(h, reg), lambda h: in_torch(h, reg), features(*shape))


@pytest.mark.parametrize("way", everywhere.WAYS)
def test_eight_devices_are_one(x64, way):
    everywhere.check_devices(make, in_torch, way)


@pytest.mark.parametrize("k", [3, 64])
def test_groups_and_masks(x64, k):
    reg = make(sketch=k)
    everywhere.check_groups(lambda **fields: make(sketch=k, **fields), lambda h: in_torch(h, reg))
    everywhere.check_masks(lambda **fields: make(sketch=k, **fields), lambda h: in_torch(h, reg))


@pytest.mark.optimized
@pytest.mark.parametrize("k", [3, 64])
def test_one_all_reduce_and_none_in_groups(k):
    everywhere.check_collectives(
        lambda **fields: make(sketch=k, **fields), Counter({"all-reduce": 1}), np.float32(features(16, 5))
    )


def test_weights(x64):
    everywhere.check_weight(make)


def test_dtypes_and_models():
    everywhere.check_dtypes(make(), in_torch)
    everywhere.check_sites_and_attach(make())


@pytest.mark.parametrize("k", [3, 64])
def test_a_large_offset_costs_no_digits_in_float32(k):
    reg, h = make(sketch=k), features(512, 5)
    far = np.float32(h + 1e4)
    expected = everywhere.by_torch(lambda rows: in_torch(rows, reg), np.float64(far))[1]
    everywhere.assert_near(everywhere.added(reg, jnp.asarray(far)), expected, 1e-5)


def test_nothing_is_added_where_the_norm_has_no_gradient(x64):
    n = 8
    rows = np.linalg.qr(np.column_stack([np.ones(n), np.random.default_rng(0).normal(size=(n, 3))]))[0][:, 1:]
    exact = jnp.asarray(rows * np.sqrt(n - 1))  # centred, with the identity for covariance to 1e-16
    assert np.isfinite(everywhere.added(make(), exact)).all()
    np.testing.assert_array_equal(everywhere.added(make(), jnp.ones((1, 4))), 0.0)
    assert make().penalty(jnp.ones((1, 4))) == 0.0


def test_a_sketch_of_no_direction_is_refused():
    with pytest.raises(ValueError, match="WeakSIGReg needs sketch >= 1, got 0"):
        make(sketch=0)
