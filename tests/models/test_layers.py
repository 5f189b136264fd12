import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vcreg_jax.models.layers import BatchNorm

DIM = 5


def maps(n: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Feature maps far from zero mean and unit variance, and the gradient that arrives at their norm."""
    rng = np.random.default_rng(0)
    return rng.normal(3.0, 2.0, (n, 3, 3, DIM)).astype(np.float32), rng.normal(size=(n, 3, 3, DIM)).astype(np.float32)


def normalised(scope, x, incoming):
    """Outputs, gradients of input and parameters, and running statistics of one training step."""
    graph, params, statistics = nnx.split(BatchNorm(DIM, scope=scope), nnx.Param, nnx.BatchStat)
    params = jax.tree.map(lambda p: p + jnp.arange(1.0, DIM + 1), params)

    def loss(params, x):
        norm = nnx.merge(graph, params, statistics, copy=True)
        y = norm(x, True)
        return (y * incoming).sum(), (y, nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)))

    gradients, (y, running) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return y, nnx.to_pure_dict(gradients[0]), gradients[1], running


@pytest.mark.parametrize("scope", ["global", 1, 2, 8])
def test_each_group_is_normalised_as_pytorch_would_with_that_group_for_a_batch(scope):
    x, incoming = maps()
    groups = 1 if scope == "global" else scope
    outputs, inputs, running, params = [], [], [], []
    for part, grad in zip(np.split(x, groups), np.split(incoming, groups), strict=True):
        norm = torch.nn.BatchNorm2d(DIM)
        with torch.no_grad():
            norm.weight.add_(torch.arange(1.0, DIM + 1))
            norm.bias.add_(torch.arange(1.0, DIM + 1))
        there = torch.from_numpy(part.transpose(0, 3, 1, 2).copy()).requires_grad_()
        y = norm(there)
        y.backward(torch.from_numpy(grad.transpose(0, 3, 1, 2).copy()))
        assert there.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
        outputs.append(y.detach().numpy().transpose(0, 2, 3, 1))
        inputs.append(there.grad.numpy().transpose(0, 2, 3, 1))
        params.append((norm.weight.grad.numpy(), norm.bias.grad.numpy()))
        assert norm.running_mean is not None and norm.running_var is not None
        running.append((norm.running_mean.numpy(), norm.running_var.numpy()))
    y, parameters, gradient, statistics = normalised(scope, jnp.asarray(x), jnp.asarray(incoming))
    np.testing.assert_allclose(y, np.concatenate(outputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, np.concatenate(inputs), rtol=1e-4, atol=1e-5)
    scale, bias = np.sum(params, axis=0)
    chex.assert_trees_all_close(parameters, {"scale": scale, "bias": bias}, rtol=1e-4, atol=1e-5)
    mean, var = np.mean(running, axis=0)
    chex.assert_trees_all_close(statistics, {"mean": mean, "var": var}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["global", 8])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_over_eight_devices_gives_the_numbers_of_one(scope, kind):
    x, incoming = (jnp.asarray(array) for array in maps())
    expected = normalised(scope, x, incoming)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        sharded = normalised(scope, jax.device_put(x, rows), jax.device_put(incoming, rows))
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scope", ["global", 8])
def test_in_a_shard_map_the_batch_is_still_the_whole_one(scope):
    x = jnp.asarray(maps()[0])
    graph, state = nnx.split(BatchNorm(DIM, scope=scope))

    def step(state, x):
        norm = nnx.merge(graph, state, copy=True)
        y = norm(x, True)
        return y, nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    over_shards = jax.shard_map(step, mesh=mesh, in_specs=(everywhere, rows), out_specs=(rows, everywhere))
    sharded = jax.jit(over_shards)(state, x)
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(step(state, x)), rtol=1e-4, atol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    norm = BatchNorm(DIM)
    norm.mean[...] = jnp.arange(5.0)
    norm.var[...] = jnp.arange(1.0, 6.0)
    x = maps()[0]
    expected = (x - np.arange(5.0)) / np.sqrt(np.arange(1.0, 6.0) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x), False), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], np.arange(5.0))


def test_a_batch_too_small_for_statistics_is_an_error():
    with pytest.raises(ValueError, match="more than 1 value per channel in training, got 1"):
        BatchNorm(DIM)(jnp.ones((1, 1, 1, DIM)), True)
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(DIM, scope=4)(jnp.ones((4, DIM)), True)
    with pytest.raises(ValueError, match="divides into 3 equal groups"):
        BatchNorm(DIM, scope=3)(jnp.ones((4, 2, 2, DIM)), True)
