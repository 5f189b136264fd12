"""What holds of every regularizer on every kind of device: asked by each one's own tests.

An oracle is PyTorch's penalty of `(n, d)` rows in float64, its gradient by autograd, and the same value in NumPy.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from tests.reference import finite_differences
from tests.regularizers.test_sharding import collectives

P = PartitionSpec
InNumPy, InTorch = Callable[[np.ndarray], float], Callable[[torch.Tensor], torch.Tensor]
WAYS = ("auto", "auto, two axes", "explicit", "explicit, two axes", "pmap", "shard_map", "shard_map with axis_name")


class Case(NamedTuple):
    """A regularizer in one form, its oracles and what its backward pass sends in the global scope."""

    make: Callable[..., Any]  # it with other fields than its test's
    in_numpy: InNumPy
    in_torch: InTorch
    sent: tuple[str, ...] = ("all-reduce",)
    is_mean: bool = False  # the penalty is a mean of what each sample has by itself, so groups change nothing


def features(*shape: int, offset: float = 0.4) -> np.ndarray:
    """Correlated features of standard deviations around 1, off the origin, whose shards differ in mean and size."""
    rng, d = np.random.default_rng(0), shape[-1]
    h = rng.normal(size=shape) @ (np.eye(d) + 0.4 * rng.normal(size=(d, d)))
    scales = np.linspace(0.5, 1.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return h * scales + 0.3 * rng.normal(size=(shape[0], *[1] * (len(shape) - 1))) + offset


def added(reg: Any, h: Any) -> jax.Array:
    """What the backward pass adds to a gradient of zeros."""
    return jax.jit(lambda h: jax.vjp(reg, h)[1](jnp.zeros_like(h))[0])(h)  # one program, not one an operation


def by_torch(oracle: InTorch, h: np.ndarray, groups: int = 1) -> tuple[float, np.ndarray]:
    """The mean of the groups' penalties, and its gradient."""
    leaf = torch.tensor(h, requires_grad=True)
    penalty = torch.stack([oracle(part.flatten(end_dim=-2)) for part in leaf.chunk(groups)]).mean()
    return penalty.item(), torch.autograd.grad(penalty, leaf)[0].numpy()


def assert_near(found: Any, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    """To a share of the largest entry."""
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


def check_formula(reg: Any, in_numpy: InNumPy, in_torch: InTorch, h: np.ndarray) -> None:
    """Value and gradient against both oracles, JAX's own derivative and finite differences; forward, the identity."""
    penalty, gradient = by_torch(in_torch, h)
    on_device = jnp.asarray(h)
    np.testing.assert_allclose(in_numpy(h.reshape(-1, h.shape[-1])), penalty, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(reg.penalty)(on_device), penalty, rtol=1e-10)
    assert_near(added(reg, on_device), gradient)
    assert_near(jax.jit(jax.grad(reg.penalty))(on_device), gradient)
    numeric = finite_differences(lambda moved: in_numpy(moved.reshape(-1, h.shape[-1])), h)
    assert_near(added(reg, on_device), numeric, 1e-7)
    np.testing.assert_array_equal(reg(on_device), h)


def check_groups(make: Callable[..., Any], in_torch: InTorch, is_mean: bool) -> None:
    """Three groups have the mean of their own penalties, another one than the whole batch's unless that `is_mean`."""
    h = features(12, 2, 5)
    penalty, gradient = by_torch(in_torch, h, groups=3)
    np.testing.assert_allclose(jax.jit(make(scope=3).penalty)(jnp.asarray(h)), penalty, rtol=1e-10)
    assert_near(added(make(scope=3), jnp.asarray(h)), gradient)
    assert is_mean != (np.abs(gradient - by_torch(in_torch, h)[1]).max() > 1e-3 * np.abs(gradient).max())


def check_masks(make: Callable[..., Any], in_torch: InTorch) -> None:
    """Rows that do not count are as if they were not there, NaN or not: in the batch, in groups, on eight devices."""
    h, mask = features(16, 3, 5), np.random.default_rng(1).random((16, 3)) < 0.6
    mask[4:8] = False  # devices, but no group, without a row
    penalty, gradient = by_torch(in_torch, h[mask])
    broken = np.where(mask[..., None], h, np.nan)

    def both(h, mask):
        masked = vc.masked(make(), mask)
        return masked.penalty(h), added(masked, h), jax.grad(masked.penalty)(h)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    put = NamedSharding(mesh, P("data"))
    for args in ((broken, mask), tuple(jax.device_put(array, put) for array in (broken, mask))):
        value, ours, derivative = jax.jit(both)(*args)
        np.testing.assert_allclose(value, penalty, rtol=1e-10)
        for found in (ours, derivative):
            assert_near(found[mask], gradient)
            np.testing.assert_array_equal(np.asarray(found)[~mask], 0.0)
    mask[4:8, :2] = True
    parts = [by_torch(in_torch, h[i : i + 8][mask[i : i + 8]]) for i in (0, 8)]
    grouped = vc.masked(make(scope=2), mask)
    np.testing.assert_allclose(
        jax.jit(grouped.penalty)(jnp.asarray(h)), np.mean([part[0] for part in parts]), rtol=1e-10
    )
    assert_near(added(grouped, jnp.asarray(h))[mask], np.concatenate([part[1] for part in parts]) / 2)
    nothing = vc.masked(make(), np.zeros((16, 3), bool))
    assert np.isfinite(nothing.penalty(jnp.asarray(h)))
    np.testing.assert_array_equal(added(nothing, jnp.asarray(h)), 0.0)


def check_few_rows(reg: Any) -> None:
    """Fewer rows than it needs have no penalty and no gradient, and a warning says so."""
    few = reg.fewest_rows - 1
    for call, nothing in ((reg.penalty, 0.0), (lambda h: added(reg, h), np.zeros((few, 4)))):
        with pytest.warns(UserWarning, match=rf"{type(reg).__name__} adds nothing: it needs \d samples, got {few} in"):
            np.testing.assert_array_equal(call(jnp.ones((few, 4))), nothing)


def check_devices(make: Callable[..., Any], in_torch: InTorch, way: str) -> None:
    """Eight devices have the gradient and the penalty of one, to 1e-12 of the largest entry."""
    h = features(16, 2, 5)
    one = np.asarray(jax.jit(lambda h: added(make(), h))(h))
    assert_near(one, by_torch(in_torch, h)[1])
    alone = jax.jit(make().penalty)(h)
    gradient, penalty = _on_eight(make, h, way)
    assert_near(gradient, one, 1e-12)
    np.testing.assert_allclose(penalty, alone, rtol=1e-12)


def _on_eight(make: Callable[..., Any], h: np.ndarray, way: str) -> tuple[Any, Any]:
    kind, *two = way.split(", ")
    shape, names = ((4, 2), ("data", "fsdp")) if two else ((8,), ("data",))
    if kind in ("auto", "explicit"):
        mesh = jax.make_mesh(
            shape, names, axis_types=(AxisType.Auto if kind == "auto" else AxisType.Explicit,) * len(shape)
        )
        with jax.set_mesh(mesh):
            split = jax.device_put(h, NamedSharding(mesh, P(names)))
            return jax.jit(lambda h: added(make(), h))(split), jax.jit(lambda h: make().penalty(h))(split)
    if kind == "pmap":
        reg = make(axis_name="data")
        apart = h.reshape(8, 2, *h.shape[1:])
        # A device's own loss is a mean over its rows: what it adds is 8 times its share of the whole batch's gradient.
        found = jax.pmap(lambda h: added(reg, h) / 8, axis_name="data")(apart)
        derivative = jax.pmap(lambda h: jax.grad(reg.penalty)(h) / 8, axis_name="data")(apart)
        assert_near(derivative, np.asarray(found), 1e-10)
        return found.reshape(h.shape), jax.pmap(reg.penalty, axis_name="data")(apart)[3]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    specs = {"mesh": mesh, "in_specs": P("data"), "out_specs": P("data")}
    if way == "shard_map":
        reg = make()
        penalty = jax.jit(jax.shard_map(reg.penalty, mesh=mesh, in_specs=P("data"), out_specs=P()))(h)
        derivative = jax.jit(jax.shard_map(jax.grad(reg.penalty), **specs))(h)
        found = jax.jit(jax.shard_map(lambda h: added(reg, h), **specs))(h)
        assert_near(derivative, np.asarray(found), 1e-10)
        return found, penalty
    reg = make(axis_name="data")
    penalty = jax.jit(jax.shard_map(reg.penalty, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False))(h)
    return jax.jit(jax.shard_map(lambda h: added(reg, h) / 8, **specs, check_vma=False))(h), penalty


def sent(reg: Any, way: str, h: np.ndarray) -> Counter:
    """The collectives of the backward pass of `reg` alone."""
    if way == "pmap":
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        specs = {"mesh": mesh, "in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
        return collectives(jax.shard_map(reg.gradient, **specs), h)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto if way == "auto" else AxisType.Explicit,))
    with jax.set_mesh(mesh):
        return collectives(reg.gradient, jax.device_put(h, NamedSharding(mesh, P("data"))))


def check_collectives(make: Callable[..., Any], expected: tuple[str, ...], h: np.ndarray) -> None:
    """In the global scope those expected, none in groups that lie on one device."""
    counts = Counter(expected)
    for way in ("auto", "explicit"):
        assert sent(make(), way, h) == counts, way
        assert sent(make(scope=8), way, h) == Counter(), way
    assert sent(make(axis_name="data"), "pmap", h) == counts
    assert sent(make(axis_name="data", scope=8), "pmap", h) == Counter()


def check_dtypes(reg: Any, in_torch: InTorch) -> None:
    """bfloat16 features have a bfloat16 gradient, near that of the rounded features."""
    half = jnp.asarray(features(64, 5), jnp.bfloat16)
    gradient = added(reg, half)
    assert gradient.dtype == jnp.bfloat16 and reg.penalty(half).dtype == jnp.float32
    expected = by_torch(in_torch, np.asarray(half, np.float64))[1]
    assert np.abs(np.float64(gradient) - expected).max() <= 0.03 * np.abs(expected).max()


def check_weights(make: Callable[..., Any]) -> None:
    """Weights may be traced and vmapped; `scaled` multiplies penalty and gradient; negative ones are refused."""
    h, reg = jnp.asarray(features(8, 5)), make()
    one = added(reg, h)
    own = {name: getattr(reg, name) for name in reg.weights}

    @jax.jit
    @jax.vmap
    def several(times):
        return added(make(**{name: weight * times for name, weight in own.items()}), h)

    for found, times in zip(several(jnp.asarray([1.0, 3.0])), (1, 3), strict=True):
        assert_near(found, times * np.asarray(one), 1e-12)
    assert_near(added(reg.scaled(0.5), h), np.asarray(one) / 2, 1e-12)
    name, first = type(reg).__name__, reg.weights[0]
    for bad, message in (
        ({first: -1.0}, f"{name} needs {first} >= 0, got -1.0"),
        ({first: float("inf")}, f"{name} needs {first} >= 0, got inf"),
        ({"scope": 0}, f'{name} needs scope="global" or a number of groups >= 1, got 0'),
        ({"axis_name": ()}, f"{name} needs axis_name to be a string"),
    ):
        _assert_refused(lambda bad=bad: make(**bad), message)
    _assert_refused(lambda: reg(jnp.zeros(3)), f"{name} needs features of shape (*samples, d) with at least two axes")
    _assert_refused(lambda: reg(jnp.zeros((3, 0))), f"{name} needs at least one feature")
    _assert_refused(lambda: make(scope=3)(h), "scope=3 needs a batch that divides into 3 equal groups, got 8")


def _assert_refused(call: Callable[[], Any], message: str) -> None:
    try:
        call()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"not refused: {message}")


def check_sites_and_attach(reg: Any) -> None:
    """In a model of this library and in any other one, its gradient reaches the parameters."""
    from flax import nnx

    model = vc.models.create(
        "convnext_digits", num_classes=3, in_channels=1, sites=vc.Sites(features=reg), rngs=nnx.Rngs(0)
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 1)), jnp.float32)
    assert [reach.verdict for reach in vc.check(model, images).values()] == ["reaches the parameters"]
    other = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 2, rngs=nnx.Rngs(1)))
    vc.attach(other, reg, where="layers/0")
    rows = jnp.asarray(features(8, 4), jnp.float32)
    assert [reach.verdict for reach in vc.check(other, rows).values()] == ["reaches the parameters"]
