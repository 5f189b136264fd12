import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.gaussian_pairs import gaussian_pairs
from vcreg_jax.metrics import mine

QUICK = mine.Settings(width=32, embedding=8, batch_size=128, steps=400, learning_rate=5e-3, critics=2)


@pytest.mark.optimized
def test_gaussian_pairs_have_the_information_that_their_correlation_implies():
    found = mine.estimate(
        *gaussian_pairs(2.0, 3, 20_000, 0), *gaussian_pairs(2.0, 3, 1024, 1), key=jax.random.key(0), settings=QUICK
    )
    for value in (found.mine, found.smile, found.info_nce):
        assert value == pytest.approx(2.0, abs=0.3)
    assert 0 < found.mine_std < 0.2 and found.log_batch_size == math.log(128)


@pytest.mark.optimized
def test_shuffled_pairs_have_none():
    x, z = gaussian_pairs(4.0, 3, 20_000, 0)
    held_x, held_z = gaussian_pairs(4.0, 3, 1024, 1)
    found = mine.estimate(x, z[::-1], held_x, held_z[::-1], key=jax.random.key(0), settings=QUICK)
    for value in (found.mine, found.smile, found.info_nce):
        assert value == pytest.approx(0.0, abs=0.1)


def _critic(seed):
    sizes = (3, 8, 8, 5)
    critic = [mine._initial(sizes, jax.random.key(seed + i)) for i in range(2)]
    for i, params in enumerate(critic):
        params["squares"] = jnp.asarray([0.3, -0.2, 0.5]) * (i + 1)
    x, z = (jax.random.normal(jax.random.key(10 + i), (12, 3)) for i in range(2))
    return critic, x, z


def _scores(critic, x, z):
    embedded, potentials = [], []
    for params, rows in zip(jax.tree.map(np.float64, critic), (x, z), strict=True):
        h = rows = np.asarray(rows, np.float64)
        for kernel, bias in zip(params["kernels"][:2], params["biases"][:2], strict=True):
            h = np.sqrt(2) * np.maximum(h @ kernel + bias, 0)
        h = h @ params["kernels"][2] + params["biases"][2]
        embedded.append((h[:, :5] + rows @ params["linear"]) / 20**0.25)
        potentials.append(h[:, 5] + rows**2 @ params["squares"])
    return embedded[0] @ embedded[1].T + potentials[0][:, None] + potentials[1]


def test_the_three_bounds_are_their_formulas_in_float64():
    critic, x, z = _critic(0)
    t = _scores(critic, x, z)
    apart = ~np.eye(12, dtype=bool)
    joint = np.diag(t).mean()
    dv = joint - np.log(np.exp(t[apart]).mean())
    shifted = t - np.log(np.exp(t[apart]).mean())
    smile = np.diag(shifted).mean() - np.log(np.exp(np.clip(shifted[apart], -1.0, 1.0)).mean())
    blocks = [t[i : i + 5, i : i + 5] for i in (0, 5)]  # the last two rows make no whole block of five
    nce = np.mean([np.diag(b) - np.log(np.exp(b).mean(axis=1)) for b in blocks])
    found = mine._read_out(mine.Settings(batch_size=5, clip=1.0), critic, x, z)
    np.testing.assert_allclose(found, [dv, smile, nce], rtol=1e-4)
    assert abs(dv - smile) > 0.1


def test_the_gradient_is_divided_by_the_moving_average_and_not_by_the_batch():
    critic, x, z = _critic(1)
    t = _scores(critic, x, z)
    mean = np.exp(t[~np.eye(12, dtype=bool)]).mean()
    average = 0.9 * 7.0 + 0.1 * mean

    def corrected(critic):
        a, b = mine._sides(critic, x, z)
        t = a @ b.T
        marginals = jnp.where(jnp.eye(12, dtype=bool), 0.0, jnp.exp(t)).sum() / 132
        return marginals / average - jnp.diagonal(t).mean()

    found, log_average = jax.grad(mine._loss, has_aux=True)(critic, x, z, jnp.log(7.0), jnp.asarray(0.1))
    expected = jax.grad(corrected)(critic)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert log_average == pytest.approx(math.log(average), rel=1e-4)
    assert abs(mean / average - 1) > 0.1


def test_too_few_pairs_are_refused():
    x = jnp.ones((20, 2))
    with pytest.raises(ValueError, match="at least 10 in training and 2 held out, got 20 and 20, 1 and 1"):
        mine.estimate(x, x, x[:1], x[:1], key=jax.random.key(0))
    with pytest.raises(ValueError, match="batch_size >= 2"):
        mine.Settings(batch_size=1)


def test_values_never_seen_in_training_do_not_decide_the_bound():
    train, held_out = jnp.asarray([[1.0, 0.0], [3.0, 0.0]] * 5), jnp.asarray([[2.5, 700.0], [1e9, 0.0]])
    standard, other = mine._standardize(train, held_out)
    np.testing.assert_allclose(standard, [[-1, 0], [1, 0]] * 5)
    np.testing.assert_allclose(other, [[0.5, 5], [5, 0]])
