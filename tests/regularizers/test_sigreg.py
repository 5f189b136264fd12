"""SIGReg against its formula in NumPy and PyTorch, with complex exponentials as the paper's Algorithm 1 has them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vcreg_jax as vc
from tests import everywhere
from tests.everywhere import Case, features


def make(**fields) -> vc.SIGReg:
    return vc.SIGReg(**{"weight": 0.7, "slices": 6, "knots": 5, "step": 3} | fields)


def directions(reg: vc.SIGReg, d: int) -> np.ndarray:
    return np.asarray(reg.directions(d, jnp.result_type(float)), np.float64)


def in_numpy(rows: np.ndarray, reg: vc.SIGReg | None = None) -> float:
    """Over -t_max to t_max, all knots counted once."""
    reg = reg or make()
    t = np.linspace(-reg.t_max, reg.t_max, 2 * reg.knots - 1)
    normal = np.exp(-(t**2) / 2)
    statistics = []
    for a in directions(reg, rows.shape[1]).T:
        characteristic = np.exp(1j * np.outer(rows @ a, t)).mean(axis=0)
        statistics.append(np.trapezoid(np.abs(characteristic - normal) ** 2 * normal, t))
    return float(reg.weight) * float(np.mean(statistics)) * (len(rows) if reg.scale == "statistic" else 1)


def in_torch(rows: torch.Tensor, reg: vc.SIGReg | None = None) -> torch.Tensor:
    reg = reg or make()
    t = torch.linspace(-reg.t_max, reg.t_max, 2 * reg.knots - 1, dtype=torch.float64)
    normal = torch.exp(-0.5 * t**2)
    angles = (rows @ torch.tensor(directions(reg, rows.shape[1])))[:, :, None] * t
    characteristic = torch.complex(angles.cos(), angles.sin()).mean(0)
    distance = torch.trapezoid((characteristic - normal).abs().square() * normal, t, dim=1).mean()
    return float(reg.weight) * distance * (len(rows) if reg.scale == "statistic" else 1)


def case(**fields) -> Case:
    reg = make(**fields)
    return Case(partial(make, **fields), partial(in_numpy, reg=reg), partial(in_torch, reg=reg))


CASES = {"SIGReg": case(), "SIGReg, distance": case(scale="distance")}


@pytest.mark.parametrize(("fields", "shape"), [({}, (1, 3)), ({"t_max": 5.0, "knots": 9}, (9, 4))], ids=str)
def test_a_single_row_and_the_knots_of_algorithm_1(x64, fields, shape):
    own = case(**fields)
    everywhere.check_formula(own.make(), own.in_numpy, own.in_torch, features(*shape))


def test_dtypes():
    everywhere.check_dtypes(make(), in_torch)


def test_directions_have_unit_length_and_change_with_step_and_seed_alone():
    first = make().directions(4)
    np.testing.assert_allclose(np.linalg.norm(first, axis=0), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(make().directions(4), first)
    for other in (make().at_step(4), make(seed=1)):
        assert np.abs(np.asarray(other.directions(4)) - first).max() > 0.1


def test_a_traced_step_compiles_once_and_redraws(x64):
    h, traced = features(16, 4), []

    @jax.jit
    def gradient(step):
        traced.append(step)
        return everywhere.added(make().at_step(step), jnp.asarray(h))

    for step in (3, 4):
        everywhere.assert_near(
            gradient(step), everywhere.by_torch(lambda r, s=step: in_torch(r, make().at_step(s)), h)[1]
        )
    assert len(traced) == 1


def test_normal_rows_have_the_expectation_of_the_statistic_under_normality(x64):
    """E n |phi_n - phi|^2 = 1 - phi^2, so the statistic's mean is integral (1 - exp(-t^2)) exp(-t^2 / 2) dt."""
    reg = vc.SIGReg(1.0, slices=64, knots=65, t_max=8.0)
    rows = np.random.default_rng(0).normal(size=(4000, 8))
    expected = np.sqrt(2 * np.pi) * (1 - 1 / np.sqrt(3))
    np.testing.assert_allclose(reg.penalty(jnp.asarray(rows)), expected, rtol=0.15)  # 64 directions in 8 dimensions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slices": 0}, "slices >= 1, knots >= 2 and t_max > 0, got 0, 5 and 3.0"),
        ({"knots": 1}, "knots >= 2"),
        ({"t_max": 0.0}, "t_max > 0"),
    ],
)
def test_what_is_no_test_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)
