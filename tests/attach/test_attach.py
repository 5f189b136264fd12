"""`attach` on NNX models that this project did not write, against the same models with the op written in by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vcreg_jax as vc
from tests.foreign_models import CNN, Block, LanguageModel, ScannedMLP, TransformerBlock

REG = vc.VCReg(alpha=3.0, beta=2.0)
WLD = vc.WLDReg(activation=1.0)  # unlike VCReg's, its gradient has a column sum


def values(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


class HandWrittenCell(nnx.LSTMCell):
    """Flax's own cell with the op at what it returns beside its carry."""

    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, REG(y)


class HandWrittenHead(nnx.Linear):
    def __call__(self, inputs, out_sharding=None):
        return super().__call__(REG(inputs), out_sharding)


def cnn(reg=lambda h: h):
    return CNN(rngs=nnx.Rngs(0), reg=reg)


def recurrent(cell=nnx.LSTMCell):
    return nnx.RNN(cell(4, 5, rngs=nnx.Rngs(0)))


def headed(head=nnx.Linear):
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.relu, head(6, 2, rngs=rngs))


# What is written by hand, what it is attached to, how, and the paths.
SAME = {
    "class": (lambda: cnn(REG), cnn, {"where": nnx.Conv}, ("conv1", "conv2"), (4, 8, 8, 1)),
    "scan": (
        lambda: ScannedMLP(6, rngs=nnx.Rngs(0), reg=REG),
        lambda: ScannedMLP(6, rngs=nnx.Rngs(0)),
        {"where": Block},
        ("layers",),
        (9, 6),
    ),
    "remat": (
        lambda: ScannedMLP(6, rngs=nnx.Rngs(0), reg=REG, remat=True),
        lambda: ScannedMLP(6, rngs=nnx.Rngs(0), remat=True),
        {"where": "/layers"},
        ("layers",),
        (9, 6),
    ),
    "tuple in a scan": (
        lambda: recurrent(HandWrittenCell),
        recurrent,
        {"where": nnx.LSTMCell, "item": 1},
        ("cell",),
        (9, 3, 4),
    ),
    "input": (
        lambda: headed(HandWrittenHead),
        headed,
        {"where": "layers/2", "at": "input"},
        ("layers/2",),
        (9, 4),
    ),
}


def parameter_gradients(model, x):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda params: (nnx.merge(graphdef, params, rest, copy=True)(x) ** 2).sum())(params)

    return nnx.to_pure_dict(gradient(params))


@pytest.mark.parametrize("case", SAME)
def test_gradients_equal_those_of_the_op_written_in_by_hand(case):
    by_hand, create, how, paths, shape = SAME[case]
    model, x = create(), values(*shape)
    tree = jax.tree.structure(nnx.to_pure_dict(nnx.state(model)))
    types = [type(module) for _, module in nnx.iter_modules(model)]
    assert vc.attach(model, REG, **how) == paths
    assert jax.tree.structure(nnx.to_pure_dict(nnx.state(model))) == tree
    found, expected = parameter_gradients(model, x), parameter_gradients(by_hand(), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    assert vc.detach(model) == paths
    assert [type(module) for _, module in nnx.iter_modules(model)] == types


def test_the_op_by_hand_is_felt_and_detach_takes_it_away():
    model, x = headed(), values(9, 4)
    without, by_hand = parameter_gradients(model, x), parameter_gradients(headed(HandWrittenHead), x)
    kernels = [gradient["layers"][0]["kernel"] for gradient in (without, by_hand)]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 1e-2
    vc.attach(model, REG, where="layers/2", at="input")
    vc.detach(model)
    jax.tree.map(np.testing.assert_array_equal, parameter_gradients(model, x), without)


def instructions(model, x) -> str:
    """The compiled program without what tells where in the source it comes from."""
    text = jax.jit(lambda model, x: model(x)).lower(model, x).compile().as_text()
    return re.sub(r"(metadata=\{[^}]*\}|^\d+ .*$)", "", text[: text.find("StackFrames")] + text[text.find("ENTRY") :])


@pytest.mark.optimized
def test_the_compiled_inference_program_is_the_same():
    model, x = cnn(), values(2, 8, 8, 1)
    model.eval()
    before = instructions(model, x)
    vc.attach(model, REG, where=nnx.Conv)
    after = instructions(model, x)
    assert "ENTRY" in before and "convolution" in before
    assert after[after.find("ENTRY") :] == before[before.find("ENTRY") :]


def test_nnxs_own_transforms_and_a_second_model_share_the_program():
    def loss(model, x):
        return (model(x) ** 2).sum()

    traces = []

    @nnx.jit
    def gradient(model, x):
        traces.append(None)
        return nnx.grad(loss)(model, x)

    x = values(9, 4)
    for _ in range(2):
        model = headed()
        vc.attach(model, REG, where="layers/2", at="input")
        found = nnx.to_pure_dict(gradient(model, x))
    expected = parameter_gradients(headed(HandWrittenHead), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        (nnx.Conv, ("conv1", "conv2")),
        ((nnx.Conv, nnx.BatchNorm), ("batch_norm1", "conv1", "conv2")),
        ("conv?", ("conv1", "conv2")),
        ("/linear2", ("linear2",)),
        (lambda path, module: path.endswith("2") and module.kernel.ndim == 2, ("linear2",)),
        (CNN, ("",)),
    ],
)
def test_what_where_means(where, paths):
    assert vc.attach(cnn(), REG, where=where) == paths


def test_a_checkpoint_from_before_fits_a_model_with_it():
    state = nnx.to_pure_dict(nnx.state(cnn()))
    model = CNN(rngs=nnx.Rngs(1))
    vc.attach(model, REG, where=nnx.Conv)
    nnx.update(model, state)
    np.testing.assert_array_equal(model.conv1.kernel[...], state["conv1"]["kernel"])
    assert isinstance(model.conv1, nnx.Conv)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: vc.attach(m, REG, where="convs/*"), r"matches nothing .* Near: conv2, conv1"),
        (lambda m: vc.attach(m, REG, where=nnx.ConvTranspose), "ConvTranspose.* Near: Conv"),
        (lambda m: vc.attach(m, REG, where=lambda path, module: False), "It has: BatchNorm, CNN, Conv, Linear"),
        (lambda m: vc.attach(m, vc.VCReg(jnp.ones(())), where=nnx.Conv), "must be numbers, not arrays"),
        (lambda m: [vc.attach(m, REG, where=w) for w in (nnx.Conv, "conv1")], "'conv1' has a regularizer already"),
    ],
)
def test_what_cannot_be_attached_is_said(act, message):
    model = cnn()
    with pytest.raises(ValueError, match=message):
        act(model)


def test_an_output_that_is_no_array_is_said_with_its_parts():
    model = recurrent()
    vc.attach(model, REG, where=nnx.LSTMCell)
    with pytest.raises(ValueError, match="LSTMCell returns a tuple of arrays at '0/0' or '0/1' or '1'; a regul"):
        model(values(9, 3, 4))


def batch():
    """Sequences that count up from a random token, and which tokens are not padding."""
    rng = np.random.default_rng(0)
    tokens = (rng.integers(0, 11, (16, 1)) + np.arange(9)) % 11
    return jnp.asarray(tokens), jnp.asarray(np.arange(9) < rng.integers(4, 10, (16, 1)))


def language_model():
    return LanguageModel(vocabulary=11, length=8, dim=8, depth=2, rngs=nnx.Rngs(0))


def test_padding_tokens_are_left_out_where_the_call_tells_them():
    """Against NumPy's boolean indexing: what reaches the last bias is the sum of the real tokens' gradients."""
    _, mask = batch()
    mask, x = mask[:, :8], values(16, 8, 8)
    block = TransformerBlock(8, 2, rngs=nnx.Rngs(0))
    real = np.asarray(jax.jit(lambda block: block(x, mask))(block))[np.asarray(mask)]
    assert vc.attach(block, WLD, where=TransformerBlock, mask=lambda x, mask: mask) == ("",)
    added = jax.jit(jax.grad(lambda block: 0.0 * block(x, mask).sum()))(block)
    expected = jax.jit(WLD.gradient)(real).sum(axis=0)
    assert float(jnp.abs(expected).max()) > 1e-2
    np.testing.assert_allclose(added.project.bias[...], expected, rtol=1e-3, atol=1e-5)


def test_a_small_language_model_with_it_trains():
    tokens, mask = batch()
    model = language_model()
    vc.attach(model, vc.VCReg(0.64, 0.08), where=TransformerBlock, mask=lambda x, mask: mask)
    graphdef, params = nnx.split(model)
    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = nnx.merge(graphdef, params)(tokens[:, :-1], mask[:, :-1])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return jnp.sum(each * mask[:, 1:]) / mask[:, 1:].sum()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[0] > 2.0 and losses[-1] < 0.3  # from chance, log 11, to nearly certain
