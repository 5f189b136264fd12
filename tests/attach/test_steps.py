"""Directions: standard normal, alike in every dtype; `at_step` finds what has them, wherever it stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import vcreg_jax as vc
from tests.everywhere import added, features
from vcreg_jax.regularizers.directions import gaussian

REG = vc.SIGReg(weight=3.0, slices=4)


def test_entries_are_standard_normal():
    drawn = np.asarray(gaussian(0, 5, 200, 300)).ravel()
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size) and np.isfinite(drawn).all()


def test_float64_has_the_same_directions_as_float32(x64):
    np.testing.assert_allclose(gaussian(1, 2, 7, 9, jnp.float64), gaussian(1, 2, 7, 9), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda reg: reg,
        vc.explicit,
        lambda reg: vc.over_time(reg, "per_step"),
        lambda reg: vc.on_axis(reg, -1),
        lambda reg: vc.masked(reg, np.ones(6, bool)),
        lambda reg: vc.Sites(block=reg, features=vc.VCReg()).block,
    ],
)
def test_at_step_reaches_into_what_holds_a_regularizer(wrap, x64):
    h = jnp.asarray(features(6, 3, 4))
    found = added(vc.at_step(wrap(REG), 7), h)
    np.testing.assert_array_equal(found, added(wrap(REG.at_step(7)), h))
    assert np.abs(found - added(wrap(REG), h)).max() > 1e-6


def test_what_has_no_directions_stays_the_same_object():
    for reg in (vc.VCReg(), vc.identity, vc.masked(vc.VCReg(), np.ones(3, bool)), vc.Sites(block=vc.VCReg())):
        assert vc.at_step(reg, 3) is reg
    assert vc.at_step(vc.Sites(block=REG), 3) == vc.Sites(block=REG.at_step(3))


@pytest.mark.parametrize("attached", [False, True])
def test_a_jitted_step_of_a_model_redraws_and_compiles_once(attached):
    """Against a model that was made with the step's regularizer: of this library, and any other one."""
    x, compiled = jnp.asarray(features(8, 4), jnp.float32), []

    def network(reg):
        rngs = nnx.Rngs(0)
        if attached:
            model = nnx.Sequential(nnx.Linear(4, 5, rngs=rngs), nnx.tanh, nnx.Linear(5, 2, rngs=rngs))
            vc.attach(model, reg, where="layers/0")
        else:
            model = Regularized(reg, rngs)
        return nnx.split(model)

    graphdef, params = network(REG)

    @jax.jit
    def gradient(params, step):
        compiled.append(step)
        return jax.grad(lambda params: (vc.at_step(nnx.merge(graphdef, params), step)(x) ** 2).sum())(params)

    for step in (0, 1, 2):
        other, _ = network(REG.at_step(step))
        expected = jax.grad(lambda params, other=other: (nnx.merge(other, params)(x) ** 2).sum())(params)
        for ours, theirs in zip(*map(jax.tree.leaves, (gradient(params, step), expected)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(compiled) == 1


class Regularized(nnx.Module):
    def __init__(self, reg, rngs):
        self.first, self.regularize, self.last = nnx.Linear(4, 5, rngs=rngs), reg, nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.regularize(self.first(x))))
