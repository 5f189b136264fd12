"""DeCov and WLD-Reg against their formulas in float64 NumPy and PyTorch's autograd of them."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import Case, features

WLD = {"diversity": 0.7, "activation": 0.3, "gamma": 2.0}


def decov(**fields) -> vc.DeCov:
    return vc.DeCov(**{"weight": 0.7} | fields)


def decov_in_numpy(rows: np.ndarray) -> float:
    c = np.cov(rows, rowvar=False, bias=True)
    return 0.35 * float((c**2).sum() - (np.diag(c) ** 2).sum())


def decov_in_torch(rows: torch.Tensor) -> torch.Tensor:
    c = torch.cov(rows.T, correction=0)
    return 0.35 * ((c**2).sum() - (c.diagonal() ** 2).sum())


def wld(variant: Literal["direct", "det", "logdet"]) -> Case:
    def in_numpy(rows: np.ndarray) -> float:
        s = np.array([[np.exp(-2.0 * (a - b) ** 2).mean() for a in rows.T] for b in rows.T])
        jittered = np.linalg.det(s + 1e-6 * np.eye(len(s)))
        likeness = {"direct": s.sum() - len(s), "det": -jittered, "logdet": -np.log(jittered)}[variant]
        return 0.7 * likeness + 0.3 * (rows**2).sum() / len(rows)

    def in_torch(rows: torch.Tensor) -> torch.Tensor:
        s = torch.exp(-2.0 * (rows[:, :, None] - rows[:, None, :]) ** 2).mean(0)
        jittered = torch.linalg.det(s + 1e-6 * torch.eye(len(s), dtype=s.dtype))
        likeness = {"direct": s.sum() - s.trace(), "det": -jittered, "logdet": -jittered.log()}[variant]
        return 0.7 * likeness + 0.3 * (rows**2).sum() / len(rows)

    def make(**fields) -> vc.WLDReg:
        return vc.WLDReg(**WLD | {"variant": variant} | fields)

    # Both terms of "direct" are means over samples, so a sample's gradient needs no other sample.
    direct = variant == "direct"
    return Case(make, in_numpy, in_torch, sent=() if direct else ("all-reduce",), is_mean=direct)


CASES = {
    "DeCov": Case(decov, decov_in_numpy, decov_in_torch),
    "WLD direct": wld("direct"),
    "WLD det": wld("det"),
    "WLD logdet": wld("logdet"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_dtypes(case):
    everywhere.check_dtypes(case.make(), case.in_torch)


@pytest.mark.parametrize("groups", [1, 3])
def test_decov_is_equation_4_with_another_weight(groups, x64):
    """beta = weight d (d - 1) / 2 ((n - 1) / n)^2."""
    h = features(12, 5)
    n, d = 12 // groups, 5
    beta = 0.7 * d * (d - 1) / 2 * ((n - 1) / n) ** 2
    unbiased = [np.cov(part, rowvar=False) for part in np.split(h, groups)]
    equation_4 = np.mean([(c**2).sum() - (np.diag(c) ** 2).sum() for c in unbiased]) / (d * (d - 1))
    np.testing.assert_allclose(decov(scope=groups).penalty(jnp.asarray(h)), beta * equation_4, rtol=1e-12)


def test_equal_features_are_finite_in_every_variant(x64):
    h = np.repeat(features(6, 1), 3, axis=1)
    for case in CASES.values():
        reg = case.make()
        assert np.isfinite(reg.penalty(jnp.asarray(h))) and np.isfinite(everywhere.added(reg, jnp.asarray(h))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vc.WLDReg(activation=-1.0), "WLDReg needs activation >= 0, got -1.0"),
        (lambda: vc.WLDReg(gamma=0.0), "WLDReg needs gamma > 0, got 0.0"),
    ],
)
def test_bad_input_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
