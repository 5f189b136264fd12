"""The probe's benchmark in small: both ways solve the same problem, and what is said of them is so."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from train import benchmark_probe


def test_objective_is_sklearns_loss_and_penalty():
    x, y = benchmark_probe.problem(200, 12, 4, 0)
    model = LogisticRegression(C=1 / 0.3).fit(x, y)
    loss = log_loss(y, model.predict_proba(x), normalize=False)
    found = benchmark_probe.objective(x, y, model.coef_.T, model.intercept_, 0.3)
    np.testing.assert_allclose(found, loss + 0.3 / 2 * (model.coef_**2).sum(), rtol=1e-6)


def test_both_ways_are_timed_in_every_round_and_reach_the_same_optimum():
    found = benchmark_probe.measure(rounds=2, sizes=(300, 12, 4), strengths=4)
    assert {way: len(seconds) for way, seconds in found.seconds.items()} == {"ours": 2, "sklearn": 2}
    for seconds in (found.seconds, found.cpu_seconds):
        assert min(*seconds["ours"], *seconds["sklearn"]) > 0
    np.testing.assert_allclose(found.ratio, np.median(np.divide(found.seconds["sklearn"], found.seconds["ours"])))
    assert found.converged
    for ours, theirs in zip(found.excess["ours"], found.excess["sklearn"], strict=True):
        assert min(ours, theirs) == 0
        assert ours < 1e-3
    assert min(found.agreement) > 0.97
    assert f"takes {found.ratio:.2f} times as long" in str(found)
