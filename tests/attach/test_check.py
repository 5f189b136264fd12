"""`check` on networks of which it is known, by how they are written, which regularizer reaches which parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vcreg_jax as vc
from tests.foreign_models import ScannedMLP, TransformerBlock

REG = vc.VCReg(alpha=3.0, beta=2.0)


def batch(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


class Net(nnx.Module):
    """Every way not to reach the parameters, and two to do so."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.head, self.other_head = nnx.Linear(6, 3, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.on_input = REG  # before any parameter
        self.on_first = REG
        self.before_stop = REG
        self.never = REG
        self.weightless = vc.VCReg(0.0, 0.0)
        self.by_hand = lambda h: h  # holds no regularizer

    def __call__(self, x):
        h = self.on_first(self.first(self.on_input(x)))
        h = self.weightless(nnx.relu(h)) + 0.0 * jax.lax.stop_gradient(self.before_stop(h))
        h = self.second(h)
        return self.head(h), self.other_head(h)


def test_every_way_to_reach_nothing_is_told_apart():
    model = Net(nnx.Rngs(0))
    vc.attach(model, REG, where=lambda path, module: path in ("head", "other_head"))
    before = [type(module) for _, module in nnx.iter_modules(model)]
    found = vc.check(model, batch(9, 4))
    assert {path: reach.verdict.partition(":")[0] for path, reach in found.items()} == {
        "on_input": "cut off",
        "on_first": "reaches the parameters",
        "before_stop": "cut off",
        "never": "not called",
        "weightless": "adds nothing",
        "head": "reaches the parameters",
        "other_head": "cut off",  # the default loss is of the first output
    }
    # Kernels and, behind a relu, a bias: what adds up to 0 over the rows moves no bias straight before it.
    assert found["on_first"].arrays == 1 and found["head"].arrays == 4
    assert found["other_head"][:2] == (0, 0.0)
    assert [type(module) for _, module in nnx.iter_modules(model)] == before and model.on_first is REG
    with_both = vc.check(model, batch(9, 4), loss=lambda output: (output[0] * output[1]).sum())
    assert with_both["other_head"].verdict == "reaches the parameters"


def test_the_norm_is_that_of_the_penaltys_gradient():
    model = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 3, rngs=nnx.Rngs(1)))
    vc.attach(model, REG, where="layers/0")
    x = batch(9, 4)
    kernel = model.layers[0].kernel[...]
    expected = jax.grad(lambda kernel: REG.penalty(x @ kernel))(kernel)  # the bias moves no covariance
    found = vc.check(model, x)["layers/0"]
    np.testing.assert_allclose(found.norm, np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:VCReg adds nothing")
def test_a_single_sample_adds_nothing():
    model = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.relu)
    vc.attach(model, REG, where="layers/0")
    assert vc.check(model, batch(1, 4))["layers/0"].verdict.startswith("adds nothing: fewer than two samples")


def test_inside_of_scan_with_a_mask_and_without_any():
    scanned = ScannedMLP(6, rngs=nnx.Rngs(0), reg=REG, remat=True)
    assert vc.check(scanned, batch(9, 6))["layers/reg"].arrays == 4
    block = TransformerBlock(8, 2, rngs=nnx.Rngs(0))
    vc.attach(block, REG, where=TransformerBlock, mask=lambda x, mask: mask)
    mask = jnp.arange(5)[None] < jnp.arange(2, 5)[:, None]
    assert vc.check(block, batch(3, 5, 8), mask)[""].verdict == "reaches the parameters"
    vc.detach(block)
    assert vc.check(block, batch(3, 5, 8), mask) == {}


A_CLASS: Any = vc.VCReg  # for the type checker would refuse it, too


@pytest.mark.parametrize(
    "make",
    [
        lambda: vc.attach(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), A_CLASS, where=nnx.Linear),
        lambda: vc.linen.intercept(lambda: None, A_CLASS, where="x"),
        lambda: vc.Sites(block=A_CLASS),
        lambda: vc.Sites(features=A_CLASS),
        lambda: vc.explicit(A_CLASS),
        lambda: vc.masked(A_CLASS, np.ones(3, bool)),
        lambda: vc.on_axis(A_CLASS, 1),
    ],
)
def test_a_class_in_the_place_of_a_regularizer_is_refused_at_once(make):
    with pytest.raises(ValueError, match=r"^A regularizer is wanted, got the class VCReg itself\. Write VCReg\("):
        make()
