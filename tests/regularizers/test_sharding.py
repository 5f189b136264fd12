"""A sharded batch has the gradients of a whole one, for at most one all-reduce a layer: on eight virtual devices."""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import vcreg_jax as vc
from tests import reference

P = PartitionSpec
WIDTH = 6
MESHES = {
    "one axis": ((8,), ("data",), P("data")),
    "two axes": ((4, 2), ("data", "fsdp"), P(("data", "fsdp"))),
    "replicated over model": ((4, 2), ("data", "model"), P("data")),
    "tokens split as well": ((4, 2), ("data", "sequence"), P("data", "sequence")),
    "replicated": ((8,), ("data",), P()),
}


def tokens(batch: int = 16, offset: float = 0.0) -> np.ndarray:
    """Correlated tokens whose groups differ in mean and size."""
    rng = np.random.default_rng(0)
    scales = np.where(np.arange(WIDTH) % 2, 1.6, 0.4) * np.linspace(0.5, 1.5, batch)[:, None, None]
    h = rng.normal(size=(batch, 4, WIDTH)) @ (np.eye(WIDTH) + 0.3 * rng.normal(size=(WIDTH, WIDTH)))
    return h * scales + 0.3 * rng.normal(size=(batch, 1, 1)) + offset


REGULARIZERS = {
    "global": vc.VCReg(delta=0.25),
    "algorithm 1": vc.VCReg(scale="algorithm_1"),
    "16 groups": vc.VCReg(delta=0.25, scope=16),
    "8 groups": vc.VCReg(scope=8),
    "4 groups, which straddle": vc.VCReg(delta=0.25, scope=4),
    "explicit": vc.explicit(vc.VCReg(delta=0.25)),
}
PENALTIES = {
    "global": reference.penalty(tokens(), alpha=0.64, beta=0.08, delta=0.25),
    "algorithm 1": reference.penalty(tokens(), alpha=0.64, beta=0.08, scale="algorithm_1"),
    "16 groups": reference.penalty(tokens(), alpha=0.64, beta=0.08, delta=0.25, groups=16),
    "8 groups": reference.penalty(tokens(), alpha=0.64, beta=0.08, groups=8),
    "4 groups, which straddle": reference.penalty(tokens(), alpha=0.64, beta=0.08, delta=0.25, groups=4),
    "explicit": reference.penalty(tokens(), alpha=0.64, beta=0.08, delta=0.25),
}


def mesh_of(kind: str, axis_type: AxisType = AxisType.Auto) -> tuple[Mesh, PartitionSpec]:
    sizes, names, spec = MESHES[kind]
    return jax.make_mesh(sizes, names, axis_types=(axis_type,) * len(sizes)), spec


def weights() -> np.ndarray:
    return np.eye(WIDTH) + 0.2 * np.random.default_rng(1).normal(size=(WIDTH, WIDTH))


def loss(weights: jax.Array, tokens: jax.Array, reg: vc.Regularizer) -> jax.Array:
    return jnp.mean(jnp.tanh(reg(tokens @ weights)) ** 2)


def gradients(weights, tokens, reg: vc.Regularizer):
    return jax.grad(loss, argnums=(0, 1))(weights, tokens, reg)


def loss_plus_penalty(weights: jax.Array, tokens: jax.Array, reg) -> jax.Array:
    return loss(weights, tokens, vc.identity) + reg.penalty(tokens @ weights)


@functools.cache
def expected(reg) -> tuple[np.ndarray, ...]:
    """The gradients on one device, by autodiff of the written-out penalty."""
    with jax.enable_x64(True):
        return jax.device_get(
            jax.jit(jax.grad(functools.partial(loss_plus_penalty, reg=reg), (0, 1)))(weights(), tokens())
        )


def assert_close(actual, desired, tolerance: float = 1e-12) -> None:
    for a, b in zip(jax.device_get(actual), desired, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def placed(mesh: Mesh, spec: PartitionSpec, weights: np.ndarray, tokens: np.ndarray):
    return jax.device_put(weights, NamedSharding(mesh, P())), jax.device_put(tokens, NamedSharding(mesh, spec))


# The gradient


@pytest.mark.parametrize("announced", [True, False], ids=["set_mesh", "placed"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit axes"])
@pytest.mark.parametrize("kind", MESHES)
def test_a_mesh_does_not_change_the_gradient(x64, kind, axis_type, announced):
    reg = REGULARIZERS["global"]
    mesh, spec = mesh_of(kind, axis_type)
    args = placed(mesh, spec, weights(), tokens())
    with jax.set_mesh(mesh) if announced else contextlib.nullcontext():
        ours = jax.jit(functools.partial(gradients, reg=reg))(*args)
    assert_close(ours, expected(reg))
    if axis_type == AxisType.Explicit:  # over auto axes the compiler places what comes out
        assert ours[1].sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit axes"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_works_on_a_mesh_of_two_axes(x64, name, axis_type):
    reg = REGULARIZERS[name]
    mesh, spec = mesh_of("two axes", axis_type)
    args = placed(mesh, spec, weights(), tokens())
    with jax.set_mesh(mesh):
        assert_close(jax.jit(functools.partial(gradients, reg=reg))(*args), expected(reg))
        np.testing.assert_allclose(jax.jit(reg.penalty)(args[1]), PENALTIES[name], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("one axis", "global"),
        ("replicated over model", "global"),
        ("tokens split as well", "global"),
        ("two axes", "global"),
        ("two axes", "algorithm 1"),
        ("two axes", "8 groups"),
        ("two axes", "16 groups"),
        ("two axes", "explicit"),
    ],
)
def test_inside_shard_map_the_pmean_of_the_losses_has_the_gradient_of_the_whole_batch(x64, kind, name):
    mesh, spec = mesh_of(kind)
    reg = REGULARIZERS[name]
    axes = tuple(axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)))

    def of_shards(weights, tokens):
        return jax.grad(lambda w, t: jax.lax.pmean(loss(w, t, reg), axes), argnums=(0, 1))(weights, tokens)

    sharded = jax.shard_map(of_shards, mesh=mesh, in_specs=(P(), spec), out_specs=(P(), spec))
    assert_close(jax.jit(sharded)(weights(), tokens()), expected(reg))
    penalty = jax.shard_map(reg.penalty, mesh=mesh, in_specs=spec, out_specs=P())
    np.testing.assert_allclose(jax.jit(penalty)(tokens()), PENALTIES[name], rtol=1e-12)


def test_groups_that_straddle_the_shards_of_a_shard_map_are_refused():
    mesh, spec = mesh_of("one axis")
    sharded = jax.shard_map(vc.VCReg(scope=4), mesh=mesh, in_specs=spec, out_specs=spec)
    message = "scope=4 needs a batch that divides into 4 equal groups, got 16 rows on 8 shard(s). "
    with pytest.raises(ValueError, match=re.escape(message + "Use a divisor of 16 that is a multiple of 8.")):
        sharded(jnp.ones((16, 3)))


def test_a_scope_of_as_many_groups_as_shards_is_the_mean_of_the_shards_own_regularizers(x64):
    mesh, spec = mesh_of("one axis")
    h, alone = tokens(), vc.VCReg(delta=0.25)
    expected = np.concatenate([jax.jit(jax.grad(alone.penalty))(part) / 8 for part in np.split(h, 8)])
    split_h = jax.device_put(h, NamedSharding(mesh, spec))
    ours = jax.jit(lambda h: jax.vjp(vc.VCReg(delta=0.25, scope=8), h)[1](jnp.zeros_like(h))[0])(split_h)
    assert_close([ours], [expected])


@pytest.mark.parametrize("batch", [12, 7])
@pytest.mark.parametrize("announced", [True, False], ids=["set_mesh", "placed"])
def test_a_batch_that_the_mesh_does_not_divide_gives_the_right_gradient(x64, batch, announced):
    mesh, _ = mesh_of("one axis")
    reg = REGULARIZERS["global"]
    desired = jax.jit(jax.grad(functools.partial(loss_plus_penalty, reg=reg), (0, 1)))(weights(), tokens(batch))
    args = placed(mesh, P(), weights(), tokens(batch))
    with jax.set_mesh(mesh) if announced else contextlib.nullcontext():
        assert_close(jax.jit(functools.partial(gradients, reg=reg))(*args), jax.device_get(desired))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit axes"])
@pytest.mark.parametrize("name", ["global", "8 groups"])
def test_vmap_over_seeds_with_the_batch_sharded(x64, name, axis_type):
    mesh, spec = mesh_of("one axis", axis_type)
    reg, seeds = REGULARIZERS[name], np.stack([weights(), weights().T, 2 * weights()])
    one = jax.jit(jax.grad(functools.partial(loss_plus_penalty, reg=reg)))
    desired = np.stack([one(seed, tokens()) for seed in seeds])
    args = placed(mesh, spec, seeds, tokens())
    with jax.set_mesh(mesh):
        ours = jax.jit(jax.vmap(jax.grad(functools.partial(loss, reg=reg)), in_axes=(0, None)))(*args)
    assert_close([ours], [desired])


@pytest.mark.parametrize("kind", ["one axis", "two axes"])
@pytest.mark.parametrize("manual", [False, True], ids=["auto", "shard_map"])
def test_a_large_common_offset_does_not_spoil_the_gradient_over_shards_in_float32(kind, manual):
    mesh, spec = mesh_of(kind)
    h = np.float32(tokens(offset=1e5))
    with jax.enable_x64(True):
        desired = jax.device_get(jax.jit(jax.grad(vc.VCReg().penalty))(np.float64(h)))

    def added(h):
        return vc.VCReg().gradient(h)

    if manual:
        added = jax.shard_map(added, mesh=mesh, in_specs=spec, out_specs=spec)
    ours = jax.jit(added)(jax.device_put(h, NamedSharding(mesh, spec)))
    assert ours.dtype == jnp.float32
    assert_close([ours], [desired], 1e-5)


# The cost

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"


FAST_TO_COMPILE: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0"
}  # of machine code; collectives are placed before


def collectives(program: Callable, *args) -> Counter:
    """How many of each collective the compiled program has."""
    text = jax.jit(program).lower(*args).compile(FAST_TO_COMPILE).as_text()
    assert text is not None
    return Counter(re.findall(rf" ({COLLECTIVES}|ragged-all-to-all)(?:-start)?\(", text))


def mlp_loss(layers: list[jax.Array], h: jax.Array, reg: vc.Regularizer) -> jax.Array:
    for layer in layers:
        h = jnp.tanh(reg(h @ layer))
    return jnp.mean(h**2)


def assert_at_most_one_all_reduce_a_layer(count: Callable[[vc.Regularizer], Counter], layers: int) -> None:
    without = count(vc.identity)
    assert set(without) == {"all-reduce"}
    in_groups = count(vc.VCReg(scope=8))
    assert in_groups == without, "groups that lie on one device need no communication"
    over_all = count(vc.VCReg(delta=0.25))
    assert set(over_all) == {"all-reduce"}
    assert without.total() < over_all.total() <= without.total() + layers


@pytest.mark.optimized
@pytest.mark.parametrize("announced", [True, False], ids=["set_mesh", "placed"])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit axes"])
def test_a_layer_costs_at_most_one_all_reduce_and_none_in_groups(axis_type, announced):
    mesh, spec = mesh_of("two axes", axis_type)
    rng = np.random.default_rng(0)
    shapes = [(6, 7), (7, 10), (10, 9)]
    layers = [jax.device_put(np.float32(rng.normal(size=s)), NamedSharding(mesh, P())) for s in shapes]
    h = tokens(64)  # so many that the rows of one group could be split over the mesh, which they must not be
    h = jax.device_put(np.float32(h), NamedSharding(mesh, spec))

    def count(reg):
        return collectives(jax.grad(functools.partial(mlp_loss, reg=reg)), layers, h)

    with jax.set_mesh(mesh) if announced else contextlib.nullcontext():
        assert_at_most_one_all_reduce_a_layer(count, layers=3)


@pytest.mark.optimized
def test_a_layer_inside_shard_map_costs_at_most_one_all_reduce_and_none_in_groups():
    mesh, spec = mesh_of("two axes")
    layers = [np.float32(np.eye(WIDTH))] * 3

    def count(reg):
        def of_shards(layers, h):
            return jax.grad(lambda layers: jax.lax.pmean(mlp_loss(layers, h, reg), ("data", "fsdp")))(layers)

        return collectives(
            jax.shard_map(of_shards, mesh=mesh, in_specs=(P(), spec), out_specs=P()), layers, np.float32(tokens())
        )

    assert_at_most_one_all_reduce_a_layer(count, layers=3)


@pytest.mark.parametrize("kind", ["replicated over model", "tokens split as well"])
def test_explicit_axes_that_do_not_split_the_rows_move_no_features(kind):
    mesh, spec = mesh_of(kind, AxisType.Explicit)
    layers = [jax.device_put(np.float32(np.eye(WIDTH)), NamedSharding(mesh, P()))]
    h = jax.device_put(np.float32(tokens()), NamedSharding(mesh, spec))
    counts = collectives(jax.grad(functools.partial(mlp_loss, reg=vc.VCReg())), layers, h)
    without = collectives(jax.grad(functools.partial(mlp_loss, reg=vc.identity)), layers, h)
    assert counts - without == Counter({"all-reduce": 1})


@pytest.mark.optimized
def test_a_block_of_convnext_costs_at_most_one_all_reduce_and_none_in_groups():
    mesh, spec = mesh_of("one axis")
    images = jax.device_put(np.zeros((16, 8, 8, 1), np.float32), NamedSharding(mesh, spec))

    def count(reg):
        net = vc.models.create(
            "convnext_digits", num_classes=3, in_channels=1, sites=vc.Sites(block=reg), rngs=nnx.Rngs(0)
        )
        graphdef, params = nnx.split(net)

        def of_logits(params, images):
            logits, _ = nnx.merge(graphdef, params)(images)
            return jnp.mean(jnp.tanh(logits) ** 2)

        replicated = jax.device_put(params, NamedSharding(mesh, P()))
        return collectives(jax.grad(of_logits), replicated, images)

    with jax.set_mesh(mesh):
        assert_at_most_one_all_reduce_a_layer(count, layers=4)
