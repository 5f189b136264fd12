"""GELU and layer norm: PyTorch's values and gradients, and nothing kept but the input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals
from jax.sharding import PartitionSpec

from vcreg_jax.models.convolution import Convolution
from vcreg_jax.models.depthwise import DepthwiseConv
from vcreg_jax.models.lean import LayerNorm, gelu

EPSILON = 1e-6


def norm(dim: int, dtype=jnp.float32) -> LayerNorm:
    layer = LayerNorm(dim, epsilon=EPSILON, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    layer.scale[...] = jnp.asarray(rng.normal(1, 0.5, dim), dtype)
    layer.bias[...] = jnp.asarray(rng.normal(0, 0.5, dim), dtype)
    return layer


def values(*shape: int) -> np.ndarray:
    return 3 * np.random.default_rng(0).standard_normal(shape) + 0.5


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_gelu_and_its_gradient_are_pytorchs_to_the_last_digits(x64):
    x = np.concatenate([values(500), [-40.0, -9.0, -0.0, 0.0, 9.0, 40.0]])
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.gelu(theirs).pow(2).sum().backward()
    value, gradient = jax.value_and_grad(lambda x: (gelu(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(value, torch.nn.functional.gelu(theirs).pow(2).sum().item(), rtol=1e-13)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: (jax.nn.gelu(x, approximate=False) ** 2).sum())(x))


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 4, 6), (6,)])
def test_a_layer_norm_and_its_gradients_are_pytorchs_to_the_last_digits(shape, x64):
    layer, x = norm(shape[-1], jnp.float64), values(*shape)
    graphdef, state = nnx.split(layer)

    def loss(state, x):
        return (jnp.sin(nnx.merge(graphdef, state)(x))).sum()

    value, (of_parameters, of_x) = jax.value_and_grad(loss, argnums=(0, 1))(state, jnp.asarray(x))
    theirs = torch.nn.LayerNorm(shape[-1], EPSILON, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(layer.scale[...])))
        theirs.bias.copy_(torch.tensor(np.asarray(layer.bias[...])))
    rows = torch.tensor(x, requires_grad=True)
    total = theirs(rows).sin().sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-12)
    np.testing.assert_allclose(of_x, rows.grad.numpy(), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(of_parameters["scale"][...], theirs.weight.grad.numpy(), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(of_parameters["bias"][...], theirs.bias.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_in_bfloat16_only_the_inputs_are_kept_and_statistics_are_float32():
    x = jnp.asarray(values(32, 64), jnp.bfloat16)
    graphdef, state = nnx.split(norm(64))
    layer = nnx.merge(graphdef, state)
    layer.dtype = jnp.bfloat16
    kept = [aval for aval, _ in saved_residuals(lambda x: layer(gelu(x)).astype(jnp.float32).sum(), x)]
    large = [(aval.shape, aval.dtype) for aval in kept if aval.size >= x.size]
    assert large == [(x.shape, jnp.bfloat16)] * 2  # of gelu and of the norm; autodiff keeps six, three of them float32
    wide = nnx.LayerNorm(64, epsilon=EPSILON, use_fast_variance=False, rngs=nnx.Rngs(0))
    wide.scale[...], wide.bias[...] = layer.scale[...], layer.bias[...]
    np.testing.assert_array_equal(layer(x), wide(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_on_a_gpu_alone_a_barrier_keeps_the_forward_pass_from_being_kept():
    def program(platform):
        gradient = jax.jit(jax.grad(lambda x: gelu(x).sum()))
        return gradient.trace(jnp.ones((4, 8))).lower(lowering_platforms=(platform,)).as_text()

    found = {platform: "optimization_barrier" in program(platform) for platform in ("cuda", "cpu", "tpu")}
    assert found == {"cuda": True, "cpu": False, "tpu": False}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("kind", ["layer norm", "depthwise", "convolution"])
def test_gradients_of_parameters_are_summed_over_the_shards_that_jax_knows(kind, check_vma):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rngs, dtype = nnx.Rngs(0), jnp.float32
    layer = {
        "layer norm": lambda: norm(6),
        "depthwise": lambda: DepthwiseConv(6, 3, kernel_init=nnx.initializers.normal(), dtype=dtype, rngs=rngs),
        "convolution": lambda: Convolution(
            6, 4, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)), use_bias=False, dtype=dtype, rngs=rngs
        ),
    }[kind]()
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(values(16, 4, 4, 6), dtype)

    def loss(state, x):
        return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

    def on_shard(state, x):
        gradients = jax.grad(loss)(state, x)
        return gradients if check_vma else jax.lax.psum(gradients, "data")

    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    sharded = jax.jit(jax.shard_map(on_shard, mesh=mesh, check_vma=check_vma, **specs))(state, x)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, sharded, jax.grad(loss)(state, x))
