"""Weak-SIGReg against NumPy's covariance and PyTorch's, with and without a sketch."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import Case, features


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


def case(k: int) -> Case:
    reg = make(sketch=k)
    return Case(partial(make, sketch=k), partial(in_numpy, reg=reg), partial(in_torch, reg=reg))


CASES = {"WeakSIGReg, sketched": case(3), "WeakSIGReg, whole": case(64)}


def test_dtypes():
    everywhere.check_dtypes(make(), in_torch)


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


def test_a_sketch_of_no_direction_is_refused():
    with pytest.raises(ValueError, match="WeakSIGReg needs sketch >= 1, got 0"):
        make(sketch=0)
