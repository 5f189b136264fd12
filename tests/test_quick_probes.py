"""Nearest neighbours and ridge regression against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from train import quick_probes

RNG = np.random.default_rng(0)


def clusters(n, d, classes=5):
    labels = np.arange(n) % classes
    centres = np.random.default_rng(9).normal(size=(classes, d))
    return 0.7 * centres[labels] + RNG.normal(size=(n, d)) + 2, labels


@pytest.mark.parametrize("neighbours", [1, 20])
def test_neighbours_vote_as_sklearns_do_with_the_same_weights(x64, neighbours):
    x, y = clusters(400, 12)
    seen = clusters(1500, 12)[0]  # more rows than are compared at once
    x[0] = seen[0] = 0

    def unit(rows):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)

    def weights(distances):  # of unit vectors: |a - b|^2 = 2 - 2 cosine
        return np.exp((1 - distances**2 / 2) / 0.07)

    other = KNeighborsClassifier(neighbours, weights=weights, algorithm="brute").fit(unit(x), y)
    found = np.asarray(quick_probes.knn(x, y, seen, 5, neighbours))
    np.testing.assert_array_equal(found[1:], other.predict(unit(seen))[1:])


@pytest.mark.parametrize("shape", [(300, 12), (30, 60)], ids=["rows", "features"])
def test_ridge_is_sklearns_at_every_strength(x64, shape):
    x, y = clusters(*shape)
    seen = clusters(1000, shape[1])[0]
    strengths = [1e-3, 1.0, 1e3, 1e6]
    found = np.asarray(quick_probes.ridge(x, y, seen, 7, strengths))  # two classes without examples
    for i, l2 in enumerate(strengths):
        outputs = Ridge(alpha=l2).fit(x, np.eye(7)[y]).predict(seen)
        np.testing.assert_array_equal(found[i], outputs.argmax(axis=1))
    assert len({tuple(row) for row in found}) > 2  # the strengths tell


def test_more_neighbours_than_rows_are_refused():
    x, y = clusters(10, 3)
    with pytest.raises(ValueError, match=r"neighbours must lie in 1\.\.10, the training rows, got 11"):
        quick_probes.knn(x, y, x, 5, 11)
