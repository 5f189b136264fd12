import jax.numpy as jnp
import numpy as np

import vcreg_jax as vc


def test_effective_rank_of_equal_variances_along_orthogonal_axes_is_their_number():
    axes = np.eye(5)[:3]
    features = np.concatenate([axes, -axes])  # centred; three equal singular values, two zeros
    assert np.isclose(vc.metrics.effective_rank(jnp.asarray(features, jnp.float32)), 3.0, rtol=1e-6)


def test_effective_rank_equals_the_entropy_formula_in_numpy():
    features = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8) + 3.0
    s = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    p = s / s.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    assert np.isclose(vc.metrics.effective_rank(jnp.asarray(features, jnp.float32)), expected, rtol=1e-5)


def test_constant_features_have_effective_rank_one():
    assert vc.metrics.effective_rank(jnp.full((6, 4), 2.0)) == 1.0
