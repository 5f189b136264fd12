"""`intercept` on Linen models that this project did not write, against the same models with the op written by hand."""

import jax
import jax.numpy as jnp
import jax_resnet
import numpy as np
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import vcreg_jax as vc
from tests.foreign_models import Encoder, Encoder1DBlock, Layer, ScannedLayers

REG = vc.VCReg(alpha=3.0, beta=2.0)


def values(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def resnet(block=jax_resnet.ResNetBlock):
    return jax_resnet.ResNet(block, stage_sizes=[1], n_classes=3, hidden_sizes=(4,))


def _by_hand(self, x):
    return REG(jax_resnet.ResNetBlock.__call__(self, x))


# Of the same name, from which Linen makes those of the parameters.
HandWrittenBlock = type("ResNetBlock", (jax_resnet.ResNetBlock,), {"__call__": _by_hand, "__annotations__": {}})


class HandWrittenHead(nn.Dense):
    @nn.compact
    def __call__(self, inputs):
        return super().__call__(REG(inputs))


class Doubled(nn.Dense):
    """Calls its parent's method, which is a call of the same module again."""

    factor: float = 2.0

    @nn.compact
    def __call__(self, inputs):
        return self.factor * super().__call__(inputs)


class HandWrittenDoubled(Doubled):
    @nn.compact
    def __call__(self, inputs):
        return REG(super().__call__(inputs))


def two_layers(head):
    return nn.Sequential([nn.Dense(6), nn.relu, head(3)])


SAME = {
    "package": (
        lambda: resnet(HandWrittenBlock),
        resnet,
        {"where": jax_resnet.ResNetBlock},
        ("layers_2",),
        (4, 8, 8, 3),
    ),
    "dict": (
        lambda: Encoder(reg=REG),
        Encoder,
        {"where": Encoder1DBlock, "item": "hidden"},
        ("Encoder1DBlock_0",),
        (4, 5, 8),
    ),
    "remat in scan": (lambda: ScannedLayers(REG), ScannedLayers, {"where": Layer, "item": 0}, ("layers",), (9, 6)),
    "parent's method": (
        lambda: two_layers(HandWrittenDoubled),
        lambda: two_layers(Doubled),
        {"where": Doubled},
        ("layers_2",),
        (9, 4),
    ),
    "input": (
        lambda: two_layers(HandWrittenHead),
        lambda: two_layers(nn.Dense),
        {"where": "layers_2", "at": "input"},
        ("layers_2",),
        (9, 4),
    ),
}


def parameter_gradients(apply, variables, x):
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return jax.jit(jax.grad(lambda params: (apply({"params": params, **rest}, x) ** 2).sum()))(variables["params"])


@pytest.mark.parametrize("case", SAME)
def test_gradients_equal_those_of_the_op_written_in_by_hand(case):
    by_hand, create, how, paths, shape = SAME[case]
    model, x = create(), values(*shape)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    apply = vc.linen.intercept(model.apply, REG, **how)
    found = parameter_gradients(apply, variables, x)
    assert apply.paths == paths
    expected = parameter_gradients(by_hand().apply, variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_it_takes_the_place_of_apply_in_a_train_state():
    import optax

    model, x = Encoder(), values(4, 5, 8)
    apply = vc.linen.intercept(model.apply, REG, where=Encoder1DBlock, item="hidden")
    variables = model.init(jax.random.key(0), x)
    state = TrainState.create(apply_fn=apply, params=variables["params"], tx=optax.sgd(1.0))

    @jax.jit
    def step(state):
        gradient = jax.grad(lambda params: (state.apply_fn({"params": params}, x) ** 2).sum())(state.params)
        return state.apply_gradients(grads=gradient)

    gradient = parameter_gradients(Encoder(reg=REG).apply, variables, x)
    expected = jax.tree.map(lambda p, g: p - g, variables["params"], gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), step(state).params, expected)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"where": "/Encoder1DBlok_*"}, "Near: Encoder1DBlock_0"),
        ({"where": nn.ConvTranspose}, "ConvTranspose.* It has: Dense, DenseGeneral, Encoder, Encoder1DBlock"),
        ({"where": Encoder1DBlock}, "Encoder1DBlock returns a dict of arrays at 'hidden' or 'pooled'; a regularizer"),
        ({"where": Encoder1DBlock, "item": "logits"}, "there is none at item='logits'"),
    ],
)
def test_what_cannot_be_intercepted_is_said(how, message):
    model, x = Encoder(), values(4, 5, 8)
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=message):
        vc.linen.intercept(model.apply, REG, **how)(variables, x)


def test_a_function_that_is_compiled_already_is_said():
    model, x = nn.Dense(3), values(4, 5)
    variables = model.init(jax.random.key(0), x)
    compiled = jax.jit(model.apply)
    compiled(variables, x)
    with pytest.raises(ValueError, match=r"put jit outside: jax.jit\(vc.linen.intercept"):
        vc.linen.intercept(compiled, REG, where=nn.Dense)(variables, x)
