import jax
import numpy as np
import pytest

from train.benchmarks import grid

ROUNDS, STEPS = 2, 3


@pytest.fixture(scope="module")
def pace(smallest):
    with pytest.MonkeyPatch.context() as patch:
        # Nine processes' starts would be most of the test's time; what they train is the same here.
        patch.setattr(grid, "in_own_process", lambda function, *arguments: function(*arguments))
        return grid.measure(ROUNDS, 3, STEPS, 16, 8, smallest)


def test_both_ways_train_the_same_settings(pace):
    assert pace.settings == pace.devices == jax.device_count()  # more than the 3 that were asked for
    separate, together = (np.array(pace.losses[way]) for way in grid.WAYS)
    assert len(np.unique(separate)) == separate.size  # every seed has its own weights, every step its own images
    np.testing.assert_allclose(together, separate, rtol=1e-3)
    np.testing.assert_allclose(pace.loss_differences, np.abs(together / separate - 1).max(axis=1))


def test_times_are_of_every_round_and_whole_runs_are_longer_than_their_steps(pace):
    for way in grid.WAYS:
        assert len(pace.step_seconds[way]) == len(pace.step_cpu_seconds[way]) == ROUNDS
        # The steps of a whole run may be a little faster than those that were timed: the machine is not ours alone.
        assert pace.whole_seconds[way] > 0.5 * STEPS * min(pace.step_seconds[way])
    separate, together = (np.array(pace.step_seconds[way]) for way in grid.WAYS)
    assert pace.ratio == pytest.approx(np.median(together / separate))
