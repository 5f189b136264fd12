"""The regularizers that say what the penalty of rows is: what holds of all of them, on every kind of device.

Their own test files have the oracles and say as `CASES` in which forms they are tried.
"""

import numpy as np
import pytest

import vcreg_jax as vc
from tests import everywhere, reference
from tests.everywhere import Case, features
from tests.regularizers import test_baselines, test_decorrelation, test_koleo, test_sigreg, test_weak_sigreg


def vcreg(**options) -> Case:
    """VCReg in one form, with its formula in NumPy and PyTorch, whose `scale` is another weight of the covariances."""
    weights = {"alpha": 0.7, "beta": 0.3, "delta": None} | options

    def in_torch(rows):
        times = len(rows) - 1 if weights.get("scale") == "algorithm_1" else 1
        return reference.torch_penalty(rows, 0.7, 0.3 * times, weights["delta"], 1e-4, 1)

    return Case(lambda **fields: vc.VCReg(**weights | fields), lambda h: reference.penalty(h, **weights), in_torch)


MODULES = (test_sigreg, test_weak_sigreg, test_koleo, test_decorrelation, test_baselines)
CASES = {
    "VCReg": vcreg(),
    "VCReg, smooth L1": vcreg(delta=0.2),
    "VCReg, Algorithm 1": vcreg(scale="algorithm_1"),
    **{name: case for module in MODULES for name, case in module.CASES.items()},
}
# Those whose code for several devices no other one runs. The rest differ in a function of the covariance only.
ON_DEVICES = (
    "VCReg, smooth L1",
    "VCReg, Algorithm 1",
    "SIGReg",
    "WeakSIGReg, sketched",
    "KoLeo",
    "WLD direct",
    "WLD logdet",
)
each_code = pytest.mark.parametrize("case", [CASES[name] for name in ON_DEVICES], ids=ON_DEVICES)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.mark.parametrize("shape", [(9, 4), (3, 2, 2, 5)], ids=str)
@each_case
def test_formula(x64, case, shape):
    everywhere.check_formula(case.make(), case.in_numpy, case.in_torch, features(*shape))


@pytest.mark.parametrize("way", everywhere.WAYS)
@each_code
def test_eight_devices_are_one(x64, case, way):
    everywhere.check_devices(case.make, case.in_torch, way)


@each_case
def test_groups_and_masks(x64, case):
    everywhere.check_groups(case.make, case.in_torch, case.is_mean)
    everywhere.check_masks(case.make, case.in_torch)


@each_case
def test_few_rows(case):
    everywhere.check_few_rows(case.make())


@pytest.mark.optimized
@each_code
def test_collectives_in_global_scope_and_none_in_groups(case):
    everywhere.check_collectives(case.make, case.sent, np.float32(features(16, 5)))


@each_case
def test_weights(x64, case):
    everywhere.check_weights(case.make)


@each_code
def test_models(case):
    everywhere.check_sites_and_attach(case.make())
