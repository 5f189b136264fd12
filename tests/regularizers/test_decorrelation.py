"""Decorrelation against NumPy's `corrcoef` and PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import Case, features

EPS = 1e-13  # so that the oracles need none


def make(**fields) -> vc.Decorrelation:
    return vc.Decorrelation(**{"weight": 0.7, "eps": EPS} | fields)


def in_numpy(rows: np.ndarray) -> float:
    r = np.corrcoef(rows, rowvar=False)
    return 0.7 * float((r[~np.eye(len(r), dtype=bool)] ** 2).mean())


def in_torch(rows: torch.Tensor) -> torch.Tensor:
    r = torch.corrcoef(rows.T)
    return 0.7 * (r[~torch.eye(len(r), dtype=torch.bool)] ** 2).mean()


CASES = {"Decorrelation": Case(make, in_numpy, in_torch)}


def test_dtypes():
    everywhere.check_dtypes(make(), in_torch)


def test_eps_is_added_to_both_variances(x64):
    rows, eps = features(9, 4), 0.3
    c = np.cov(rows, rowvar=False)
    spread = np.sqrt(np.diag(c) + eps)
    r = (c / np.outer(spread, spread))[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(make(eps=eps).penalty(jnp.asarray(rows)), 0.7 * (r**2).mean(), rtol=1e-12)


def test_it_does_not_change_with_the_spread_of_a_feature(x64):
    rows = jnp.asarray(features(9, 4))
    np.testing.assert_allclose(
        make().penalty(rows), make().penalty(rows * jnp.array([[1e-2, 1.0, 7.0, 1e3]])), rtol=1e-8
    )


def test_constant_features_are_finite():
    reg = vc.Decorrelation()
    rows = jnp.ones((6, 3)).at[:, 0].set(jnp.arange(6.0))
    np.testing.assert_array_equal(everywhere.added(reg, rows), 0.0)
    assert reg.penalty(rows) == 0.0
    with pytest.warns(UserWarning, match="Decorrelation adds nothing: it needs 2 features, got 1"):
        assert reg.penalty(jnp.ones((6, 1))) == 0.0
    with pytest.raises(ValueError, match="eps > 0"):
        vc.Decorrelation(eps=0.0)
