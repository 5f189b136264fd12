import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

import vcreg_jax as vc

metrics = vc.metrics


def _clusters(n=300, k=7, d=12, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return (rng.normal(size=(n, d)) + 2 * rng.normal(size=(k, d))[labels] + offset).astype(np.float32), labels


def _cdnv(features, labels):
    """Eq. 8 written out in float64, the mean over pairs of classes that have rows."""
    own = [features[labels == c].astype(np.float64) for c in np.unique(labels)]
    pairs = [
        (a.var(axis=0).sum() + b.var(axis=0).sum()) / (2 * ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
        for a, b in itertools.combinations(own, 2)
    ]
    return np.mean(pairs)


def test_effective_rank_of_equal_variances_along_orthogonal_axes_is_their_number():
    axes = np.eye(5)[:3]
    features = np.concatenate([axes, -axes])  # centred; three equal singular values, two zeros
    assert np.isclose(metrics.effective_rank(jnp.asarray(features, jnp.float32)), 3.0, rtol=1e-6)


def test_ranks_equal_the_entropy_formula_in_numpy_and_only_rankme_sees_the_mean():
    features = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8) + 3.0
    for of, x in ((metrics.effective_rank, features - features.mean(axis=0)), (metrics.rankme, features)):
        s = np.linalg.svd(x, compute_uv=False)
        p = s / s.sum()
        assert np.isclose(of(jnp.asarray(features, jnp.float32)), np.exp(-(p * np.log(p)).sum()), rtol=1e-5)


def test_constant_features_have_effective_rank_one():
    assert metrics.effective_rank(jnp.full((6, 4), 2.0)) == 1.0


def test_cdnv_equals_the_formula_in_float64_whatever_the_offset_and_with_a_class_missing():
    features, labels = _clusters(offset=1000.0)
    labels[labels == 3] = 4
    assert np.isclose(metrics.cdnv(jnp.asarray(features), jnp.asarray(labels), 7), _cdnv(features, labels), rtol=1e-4)


def test_cdnv_of_a_simplex_is_its_variance_over_its_squared_edge():
    vertices, radius, edge = 3 * np.eye(4), 0.5, 3 * np.sqrt(2)  # each class: two points, `radius` from its vertex
    features = np.concatenate(
        [vertices + radius * np.roll(np.eye(4), 1, 0), vertices - radius * np.roll(np.eye(4), 1, 0)]
    )
    found = metrics.cdnv(jnp.asarray(features, jnp.float32), jnp.arange(8) % 4, 4)
    assert np.isclose(found, radius**2 / edge**2, rtol=1e-6)


def test_cdnv_and_nearest_class_do_not_change_by_moving_rotating_and_scaling():
    features, labels = _clusters(n=120, d=6)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    for changed in (features + 5, features @ rotation, 100 * features, features[:, ::-1]):
        a, b = (jnp.asarray(np.ascontiguousarray(x), jnp.float32) for x in (features, changed))
        assert np.isclose(metrics.cdnv(a, jnp.asarray(labels), 7), metrics.cdnv(b, jnp.asarray(labels), 7), rtol=1e-4)
        nearest = (metrics.nearest_class(x, metrics.class_means(x, jnp.asarray(labels), 7)) for x in (a, b))
        np.testing.assert_array_equal(*nearest)
    wider = features * np.linspace(1, 5, 6)
    assert abs(_cdnv(wider, labels) / _cdnv(features, labels) - 1) > 0.01  # which another metric does change


def test_cdnv_needs_two_classes_and_is_infinite_where_two_means_coincide():
    with pytest.raises(ValueError, match=r"compares pairs of classes, got 1 class"):
        metrics.cdnv(jnp.ones((3, 2)), jnp.zeros(3, int), 1)
    same = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert metrics.cdnv(same, jnp.asarray([0, 0, 1, 1]), 2) == np.inf


def test_the_nearest_class_is_scikit_learns_and_both_readings_of_ncc_count_it():
    features, labels = _clusters(n=1500, offset=100.0)
    oracle = NearestCentroid().fit(features.astype(np.float64), labels).predict(features)
    x, y = jnp.asarray(features), jnp.asarray(labels)
    means = metrics.class_means(x, y, 7)
    np.testing.assert_array_equal(metrics.nearest_class(x, means), oracle)
    logits = np.random.default_rng(2).normal(size=(1500, 7)).astype(np.float32)
    assert np.isclose(metrics.ncc_accuracy(x, y, means), (oracle == labels).mean())
    assert np.isclose(metrics.ncc_agreement(x, jnp.asarray(logits), means), (oracle == logits.argmax(1)).mean())
    absent = metrics.class_means(x, jnp.where(y == 2, 3, y), 7)
    assert 2 not in metrics.nearest_class(x, absent)


@pytest.mark.parametrize("host", [True, False])
def test_batches_of_a_data_set_merge_to_the_whole(host):
    """Uneven batches, padded rows, and an offset 1,000 times the spread between classes."""
    features, labels = _clusters(n=2000, offset=1000.0)
    whole = [features[labels == c].astype(np.float64) for c in range(7)]
    padded = np.concatenate([features, np.full((40, 12), 7e4, np.float32)])
    marked = np.concatenate([labels, np.repeat([-1, 7], 20)])
    cuts = [3, 500, 501, 1900]
    batches = [
        (jnp.asarray(x), jnp.asarray(y)) for x, y in zip(np.split(padded, cuts), np.split(marked, cuts), strict=True)
    ]

    def merged(parts):
        parts = [jax.tree.map(np.float64, part) for part in parts] if host else parts
        merge = type(parts[0]).merge
        total, merge = parts[0], merge if host else jax.jit(merge)
        for part in parts[1:]:
            total = merge(total, part)
        return total

    means = merged([metrics.class_means(x, y, 7) for x, y in batches])
    spread = merged([metrics.class_spread(x, y, means.means) for x, y in batches])
    np.testing.assert_array_equal(means.counts, [len(own) for own in whole])
    np.testing.assert_allclose(means.means, [own.mean(axis=0) for own in whole], rtol=3e-7)
    assert np.isclose(metrics.cdnv_of(spread, means.means), _cdnv(features, labels), rtol=1e-5 if host else 1e-4)
    found = merged([metrics.moments(x.reshape(-1, 1, 12), y.reshape(-1) % 8 < 7) for x, y in batches])
    np.testing.assert_allclose(found.covariance(), np.cov(features.T.astype(np.float64)), atol=2e-4)


def test_the_class_means_need_not_be_exact_for_the_variances_to_be():
    features, labels = _clusters()
    near = metrics.class_means(jnp.asarray(features), jnp.asarray(labels), 7).means + 0.5
    spread = metrics.class_spread(jnp.asarray(features), jnp.asarray(labels), near)
    assert np.isclose(metrics.cdnv_of(spread, near), _cdnv(features, labels), rtol=1e-5)


def test_a_thousand_classes_need_memory_for_their_means_not_for_their_pairs():
    k, d = 1000, 256
    spread = metrics.ClassSpread(jnp.ones(k), jnp.ones(k), jnp.zeros((k, d)))
    memory = jax.jit(metrics.cdnv_of).lower(spread, jnp.zeros((k, d))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 6 * 4 * k * d  # pairs times dimensions would be 1,000 times k d


def test_linear_cka_equals_the_form_with_centred_kernels():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 8))
    y[:, :3] += 2 * x[:, :3]
    centre = np.eye(40) - 1 / 40
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    assert np.isclose(metrics.linear_cka(x, y), expected, rtol=1e-5)
    joint = metrics.moments(jnp.concatenate([x, y], axis=1)).covariance()
    assert np.isclose(metrics.linear_cka_of(joint, 5), expected, rtol=1e-5)
    assert np.isclose(metrics.linear_cka(x, 3 * x[:, ::-1] + 1), 1.0, rtol=1e-5)


def test_covariance_statistics_are_numpys():
    features = np.random.default_rng(4).normal(size=(60, 6)) * np.arange(1, 7)
    c = np.cov(features.T)
    off = c[~np.eye(6, dtype=bool)]
    expected = [np.diag(c).mean(), np.diag(c).min(), np.diag(c).max(), np.sqrt((off**2).mean()), np.abs(off).max()]
    found = metrics.covariance_statistics(metrics.moments(jnp.asarray(features, jnp.float32)).covariance())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
