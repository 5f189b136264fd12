"""A regularizer where a residual block's branch and shortcut part, alone and in ResNets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import vcreg_jax as vc
from tests.torch_models import FAMILIES, batch
from vcreg_jax.models.fork import fork

SAMPLED = {
    "global": vc.VCReg(2.0, 3.0, delta=0.1, sample=2),
    "in groups": vc.VCReg(2.0, 3.0, scope=2, sample=2),
}


def maps(dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(x, dtype) for x in rng.normal(size=(3, 8, 6, 6, 5)) * 0.4]


@pytest.mark.parametrize(
    "reg",
    [*SAMPLED.values(), vc.VCReg(2.0, 3.0, scope=8, sample=2), vc.VCReg(2.0, 3.0), vc.DeCov(300.0)],
    ids=[*SAMPLED, "too small", "all", "DeCov"],
)
def test_the_penaltys_gradient_is_added_to_those_of_branch_and_shortcut(x64, reg):
    h, a, b = maps(jnp.float64)

    def task(branch, shortcut):
        return (a * jnp.sin(branch)).sum() + (b * shortcut**2).sum()

    written_out = jax.grad(lambda h: task(h, h) + reg.penalty(h))(h)
    forked = jax.grad(lambda h: task(*fork(reg, h)))(h)
    np.testing.assert_allclose(forked, written_out, rtol=1e-12, atol=1e-14)
    assert np.abs(forked - jax.grad(lambda h: task(h, h))(h)).max() > 1e-3
    for part in fork(reg, h):
        np.testing.assert_array_equal(part, h)


def test_bfloat16_stays_and_weights_may_be_traced():
    h, a, b = maps(jnp.bfloat16)

    def loss(h, alpha):
        branch, shortcut = fork(vc.VCReg(alpha, 0.5, sample=2), h)
        return (a * branch + b * shortcut).astype(jnp.float32).sum()

    found = jax.vmap(jax.grad(loss), (None, 0))(h, jnp.array([0.0, 500.0]))
    assert found.dtype == jnp.bfloat16
    for alpha, gradient in zip((0.0, 500.0), found.astype(jnp.float32), strict=True):
        penalty = jax.grad(vc.VCReg(alpha, 0.5, sample=2).penalty)(h.astype(jnp.float32))
        expected = (a + b).astype(jnp.float32) + penalty
        np.testing.assert_allclose(gradient, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("reg", SAMPLED.values(), ids=SAMPLED)
def test_it_is_the_same_on_a_mesh(x64, reg, kind):
    h, a, b = maps(jnp.float64)

    def task(branch, shortcut, a, b):
        return (a * jnp.sin(branch) + b * shortcut**2).sum()

    written_out = jax.grad(lambda h: task(h, h, a, b) + reg.penalty(h))(h)
    forked = jax.jit(jax.grad(lambda h, a, b: task(*fork(reg, h), a, b)))
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])):
        rows = [jax.device_put(x, PartitionSpec("data")) for x in (h, a, b)]
        np.testing.assert_allclose(forked(*rows), written_out, rtol=1e-11, atol=1e-13)


def test_of_any_other_function_it_is_what_that_returns_twice():
    branch, shortcut = fork(lambda h: 2 * h, jnp.ones((2, 3)))
    np.testing.assert_array_equal(branch, np.full((2, 3), 2.0))
    np.testing.assert_array_equal(shortcut, branch)


def test_it_refuses_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="divides into 3 equal groups, got 8 rows"):
        fork(vc.VCReg(scope=3, sample=2), maps(jnp.float32)[0])


@pytest.mark.parametrize("reg", [*SAMPLED.values(), vc.VCReg(scope=2)], ids=[*SAMPLED, "all in groups"])
def test_a_program_may_be_exported_for_any_batch(reg):
    (batch_size,) = jax.export.symbolic_shape("b")
    any_batch = jax.ShapeDtypeStruct((batch_size, 6, 6, 5), jnp.float32)
    program = jax.export.export(jax.jit(lambda h: sum(fork(reg, h))))(any_batch)
    h = maps(jnp.float32)[0][:3]
    np.testing.assert_array_equal(program.call(h), 2 * h)


def test_a_resnets_gradients_are_those_of_the_loss_with_the_penalty_of_every_block(x64):
    reg = vc.VCReg(20.0, 30.0, scope=2, sample=2)
    family, seen = FAMILIES["CIFAR resnet, option B, 4 channels"], []
    images, labels = batch(family, n=8)

    def gradients(sites):
        model = family.ours(num_classes=10, sites=sites, dtype=jnp.float64, rngs=nnx.Rngs(0))
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            seen.clear()
            logits, _ = nnx.merge(graph, params, rest, copy=True)(jnp.asarray(images), train=True)
            return vc.losses.cross_entropy(logits, jnp.asarray(labels)).mean() + sum(reg.penalty(h) for h in seen)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    written_out = gradients(vc.Sites(block=lambda h: seen.append(h) or h))
    assert len(seen) == 3
    for mine, theirs in zip(gradients(vc.Sites(block=reg)), written_out, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


# Of eight blocks' inputs the first is the stem's, and the last too small to sample.
@pytest.mark.parametrize(("sample", "count"), [(1, 0), (2, 6)])
def test_a_resnet_waits_for_the_shortcuts_gradients_where_it_samples(sample, count):
    reg = vc.VCReg(sample=sample)
    model = nnx.eval_shape(lambda: vc.models.create("resnet18", width=8, sites=vc.Sites(block=reg), rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)

    def loss(params):
        return nnx.merge(graph, params)(jnp.ones((16, 128, 128, 3)))[0].sum()

    equations = jax.make_jaxpr(jax.grad(loss))(params).eqns
    barriers = [equation for equation in equations if equation.primitive.name == "optimization_barrier"]
    assert sum(len(equation.invars) == 2 for equation in barriers) == count
