"""The regularizers that say what the penalty of rows is: what holds of all of them, on every kind of device.

Their own test files have the oracles and say as `CASES` in which forms they are tried.
"""

import numpy as np
import pytest

from tests import everywhere
from tests.everywhere import features
from tests.regularizers import test_decorrelation, test_koleo, test_sigreg, test_weak_sigreg

MODULES = (test_sigreg, test_weak_sigreg, test_koleo, test_decorrelation)
CASES = {name: case for module in MODULES for name, case in module.CASES.items()}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.mark.parametrize("shape", [(9, 4), (3, 2, 2, 5)], ids=str)
@each_case
def test_formula(x64, case, shape):
    everywhere.check_formula(case.make(), case.in_numpy, case.in_torch, features(*shape))


@pytest.mark.parametrize("way", everywhere.WAYS)
@each_case
def test_eight_devices_are_one(x64, case, way):
    everywhere.check_devices(case.make, case.in_torch, way)


@each_case
def test_groups_and_masks(x64, case):
    everywhere.check_groups(case.make, case.in_torch)
    everywhere.check_masks(case.make, case.in_torch)


@pytest.mark.optimized
@each_case
def test_collectives_in_global_scope_and_none_in_groups(case):
    everywhere.check_collectives(case.make, case.sent, np.float32(features(16, 5)))


@each_case
def test_weights(x64, case):
    everywhere.check_weight(case.make)


@each_case
def test_models(case):
    everywhere.check_sites_and_attach(case.make())
