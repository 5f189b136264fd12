import numpy as np
import pytest

from tests.processes import QUICKLY_COMPILED
from train import benchmark_grid
from train.timing import in_own_process

ROUNDS, STEPS = 2, 3


@pytest.fixture(scope="module")
def pace():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUICKLY_COMPILED | {"JAX_NUM_CPU_DEVICES": "2"}).items():
            patch.setenv(name, value)
        return in_own_process(benchmark_grid.measure, ROUNDS, 1, STEPS, 16, 8, "convnext_digits")


def test_both_ways_train_the_same_settings(pace):
    assert pace.settings == pace.devices == 2  # one was asked for
    separate, together = (np.array(pace.losses[way]) for way in benchmark_grid.WAYS)
    assert len(np.unique(separate)) == 2 * (1 + ROUNDS)  # every seed has its own weights, every step its own images
    np.testing.assert_allclose(together, separate, rtol=1e-3)
    np.testing.assert_allclose(pace.loss_differences, np.abs(together / separate - 1).max(axis=1))


def test_times_are_of_every_round_and_whole_runs_hold_compilation(pace):
    for way in benchmark_grid.WAYS:
        assert len(pace.step_seconds[way]) == len(pace.step_cpu_seconds[way]) == ROUNDS
        assert pace.whole_seconds[way] > STEPS * min(pace.step_seconds[way])
    separate, together = (np.array(pace.step_seconds[way]) for way in benchmark_grid.WAYS)
    assert pace.ratio == pytest.approx(np.median(together / separate))
