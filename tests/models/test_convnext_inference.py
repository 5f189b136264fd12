import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vcreg_jax as vc
from vcreg_jax.models.convnext import ConvNeXt

REG = vc.VCReg(delta=0.05)
EVERYWHERE = vc.Sites(block=REG, downsample=REG, features=REG)
fast_to_compile = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def model(sites: vc.Sites = vc.Sites(), seed: int = 0, **options) -> nnx.Module:  # noqa: B008 - frozen
    return vc.models.create(
        "convnext_digits", num_classes=3, in_channels=1, sites=sites, rngs=nnx.Rngs(seed), **options
    )


def small(sites: vc.Sites, **options) -> nnx.Module:
    """One block a stage, which compiles faster."""
    return ConvNeXt((1, 1), (8, 16), 2, num_classes=3, in_channels=1, sites=sites, rngs=nnx.Rngs(0), **options)


def images(batch: int = 8) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 8, 8, 1)), jnp.float32)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def loss(graphdef: nnx.GraphDef, params: dict, images: jax.Array) -> jax.Array:
    logits, features = nnx.merge(graphdef, params)(images)
    return jnp.mean(jnp.tanh(logits) ** 2) + jnp.mean(features**3)


def compiled(program: Callable, *args) -> str:
    """The program that runs, less what records which line of which file an instruction came from."""
    text = jax.jit(program).lower(*args).compile().as_text()
    assert text is not None
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    return re.sub(r"(?ms)^(FileNames|FunctionNames|FileLocations|StackFrames)\n.*?\n\n", "", text)


@pytest.mark.optimized
def test_inference_compiles_to_the_same_program_with_vcreg_everywhere_as_without():
    programs = []
    for sites in (vc.Sites(), EVERYWHERE):
        graphdef, params = split(model(sites))

        def infer(params, images, graphdef=graphdef):
            return nnx.merge(graphdef, params)(images)

        programs.append(compiled(infer, params, images()))
    assert "convolution" in programs[0] and "metadata" not in programs[0]
    assert programs[0] == programs[1]


def test_the_parameters_are_those_of_the_model_without():
    (_, plain), (_, regularized) = split(model()), split(model(EVERYWHERE))
    expected, actual = (jax.tree.leaves_with_path(tree) for tree in (plain, regularized))
    assert [path for path, _ in actual] == [path for path, _ in expected]
    for (_, a), (_, b) in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_graphdefs_of_equal_regularizers_are_equal_and_hash_alike():
    twin = vc.VCReg(delta=0.05)
    first, _ = split(model(EVERYWHERE, seed=0))
    second, _ = split(model(vc.Sites(block=twin, downsample=twin, features=twin), seed=1))
    assert first == second and hash(first) == hash(second)
    assert first != split(model())[0]
    assert first != split(model(vc.Sites(block=twin.scaled(2.0), downsample=twin, features=twin)))[0]


def with_penalties(graphdef: nnx.GraphDef, params: dict, images: jax.Array, seen: list[jax.Array]) -> jax.Array:
    """The loss plus the penalty of all features that the recording regularizers have `seen`."""
    seen.clear()
    return loss(graphdef, params, images) + sum(REG.penalty(h) for h in seen)


def test_the_gradient_is_that_of_the_loss_plus_the_penalties_at_all_sites(x64):
    seen = []

    def record(h):
        seen.append(h)
        return h

    everywhere, params = split(small(EVERYWHERE, dtype=jnp.float64))
    recording, _ = split(small(vc.Sites(block=record, downsample=record, features=record), dtype=jnp.float64))
    params, x = jax.tree.map(jnp.float64, params), images().astype(jnp.float64)
    ours = fast_to_compile(jax.grad(functools.partial(loss, everywhere)))(params, x)
    expected = fast_to_compile(jax.grad(functools.partial(with_penalties, recording, seen=seen)))(params, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * np.abs(b).max())
    assert [h.shape for h in seen] == [(8, 4, 4, 8), (8, 2, 2, 16), (8, 2, 2, 16), (8, 16)]


def test_blocks_are_regularized_after_their_addition_and_features_as_the_classifier_sees_them():
    seen = []

    def record(h):
        seen.append(h)
        return h

    net = model(vc.Sites(block=record, features=record))
    _, features = net(images())  # pyright: ignore[reportCallIssue]
    before_the_last, last, of_the_classifier = seen[-3:]
    np.testing.assert_array_equal(of_the_classifier, features)
    branch = np.abs(last - before_the_last).max()
    assert 0 < branch < 1e-3 * np.abs(last).max(), "layer scale starts at 1e-6: an output is its input, almost"
    np.testing.assert_allclose(net.norm(last.mean(axis=(1, 2))), features, rtol=1e-6)  # pyright: ignore


def test_nnx_jit_and_grad_train_the_merged_model_on_a_sharded_batch():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    seen, x = [], images(16)

    def record(h):
        seen.append(h)
        return h

    recording, params = split(small(vc.Sites(block=record)))
    expected = fast_to_compile(jax.grad(functools.partial(with_penalties, recording, seen=seen)))(params, x)

    @nnx.jit
    def gradient(net, images):
        def objective(net):
            logits, features = net(images)
            return jnp.mean(jnp.tanh(logits) ** 2) + jnp.mean(features**3)

        return nnx.grad(objective)(net)

    split_batch = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    with jax.set_mesh(mesh):
        net = nnx.merge(*nnx.split(small(vc.Sites(block=REG))))
        ours = nnx.to_pure_dict(gradient(net, split_batch))
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves_with_path(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))
