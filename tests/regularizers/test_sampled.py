"""`VCReg(sample=k)` is the exact penalty of every k-th row and column: the oracles get the positions by hand."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from tests import reference
from tests.torch_models import FAMILIES, batch
from vcreg_jax.regularizers import sampling
from vcreg_jax.regularizers.statistics import covariance

P = PartitionSpec
WEIGHTS = {"alpha": 2.0, "beta": 0.7, "delta": 0.25}

# The shape of the features, the stride, and which positions it keeps along every axis of them.
CASES = [
    ((6, 7, 5, 3), 2, ([0, 2, 4, 6], [0, 2, 4])),
    ((6, 7, 6, 3), 3, ([0, 3, 6], [1, 4])),
    ((8, 10, 4), 4, ([0, 4, 8],)),
    ((12, 7, 5), 4, ([1, 5],)),
    ((8, 3, 4, 2, 3), 2, ([0, 2], [0, 2], [0])),
]
each_case = pytest.mark.parametrize(("shape", "stride", "positions"), CASES, ids=repr)
each_scope = pytest.mark.parametrize("scope", ["global", 2])


def features(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Correlated features off the origin, of standard deviations on both sides of 1."""
    rng = np.random.default_rng(seed)
    d = shape[-1]
    scales = np.where(np.arange(d) % 2, 2.0, 0.4)
    return (rng.normal(size=shape) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))) * scales + np.linspace(-2.0, 3.0, d)


def kept(h, positions):
    """The rows at `positions`, of a NumPy array or a tensor."""
    for axis, chosen in enumerate(positions, start=1):
        h = h.take(chosen, axis) if isinstance(h, np.ndarray) else h.index_select(axis, torch.tensor(chosen))
    return h


def groups_of(scope) -> int:
    return 1 if scope == "global" else scope


def torch_gradient(h: np.ndarray, positions, scope="global", alpha=2.0, beta=0.7, delta=0.25) -> np.ndarray:
    """PyTorch's gradient, with respect to all of `h`, of the written-out penalty of the rows at `positions`."""
    leaf = torch.tensor(np.asarray(h, np.float64), requires_grad=True)
    penalty = reference.torch_penalty(kept(leaf, positions), alpha, beta, delta, 1e-4, groups_of(scope))
    return torch.autograd.grad(penalty, leaf)[0].numpy()


@jax.jit
def added(reg, h):
    """What the backward pass of `reg` adds to a zero gradient."""
    return jax.vjp(reg, h)[1](jnp.zeros_like(h))[0]


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.fixture
def few_rows_do(monkeypatch):
    """Samples of as few rows as small tests have."""
    monkeypatch.setattr(sampling, "ROWS_PER_FEATURE", 1)


# Numbers


@each_case
@each_scope
def test_the_penalty_is_that_of_the_kept_rows_in_numpy(x64, few_rows_do, shape, stride, positions, scope):
    h = features(shape)
    ours = vc.VCReg(**WEIGHTS, scope=scope, sample=stride).penalty(jnp.asarray(h))
    expected = reference.penalty(kept(h, positions), **WEIGHTS, groups=groups_of(scope))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@each_case
@each_scope
@pytest.mark.parametrize("wrap", [lambda reg: reg, vc.explicit], ids=["closed form", "explicit"])
def test_the_backward_pass_adds_the_gradient_of_that_penalty(x64, few_rows_do, shape, stride, positions, scope, wrap):
    h = features(shape)
    ours = added(wrap(vc.VCReg(**WEIGHTS, scope=scope, sample=stride)), jnp.asarray(h))
    assert relative_error(ours, torch_gradient(h, positions, scope)) < 1e-12


@each_case
def test_the_backward_pass_adds_the_finite_differences_of_that_penalty(x64, few_rows_do, shape, stride, positions):
    h = features(shape)
    expected = reference.finite_differences(lambda h: reference.penalty(kept(h, positions), **WEIGHTS), h)
    assert relative_error(added(vc.VCReg(**WEIGHTS, sample=stride), jnp.asarray(h)), expected) < 1e-7


@pytest.mark.parametrize(
    ("shape", "stride", "positions"),
    [((12, 6, 9, 4), 3, ([1, 4], [1, 4, 7])), ((8, 10, 4), 4, ([0, 4, 8],))],
    ids=["the stride divides", "it does not"],
)
def test_the_gradient_is_added_to_the_incoming_one_where_the_rows_were(x64, few_rows_do, shape, stride, positions):
    h, incoming = features(shape), features(shape, seed=1)
    reg = vc.VCReg(alpha=2.0, beta=0.7, delta=0.25, sample=stride)
    ours = jax.jit(lambda h, incoming: jax.vjp(reg, h)[1](incoming)[0])(h, incoming)
    assert relative_error(ours - incoming, torch_gradient(h, positions)) < 1e-12


def test_rows_that_are_left_out_receive_the_incoming_gradient_bit_for_bit(few_rows_do):
    h, incoming = (jnp.asarray(features((6, 7, 5, 3), seed), jnp.bfloat16) for seed in (0, 1))
    out = np.asarray(jax.vjp(vc.VCReg(sample=2, beta=50.0), h)[1](incoming)[0], np.float32)
    left_out = np.ones((7, 5), bool)
    left_out[::2, ::2] = False
    incoming = np.asarray(incoming, np.float32)
    np.testing.assert_array_equal(out[:, left_out], incoming[:, left_out])
    assert (out[:, ~left_out] != incoming[:, ~left_out]).mean() > 0.3


@pytest.mark.parametrize("k", [2, 3])
def test_averaged_over_all_offsets_it_is_the_exact_gradient_when_all_offsets_have_the_same_statistics(x64, k):
    # Every row k^2 times, once at each offset. Both 1 / (n - 1) of the covariance term then differ, and known factors
    # remain: (n - 1) / (n - k^2) from the sum over rows, as documented, and once more from the covariance itself.
    coarse = features((8, 3, 3, 3))
    h = coarse.repeat(k, axis=1).repeat(k, axis=2)
    reg, n = vc.VCReg(alpha=0.0, beta=0.7, sample=k), h.size // 3
    shifts = [(i, j) for i in range(k) for j in range(k)]
    shifted = [np.roll(added(reg, jnp.roll(h, (i, j), (1, 2))), (-i, -j), (1, 2)) for i, j in shifts]
    everywhere = tuple(range(3 * k)), tuple(range(3 * k))
    expected = torch_gradient(h, [list(axis) for axis in everywhere], alpha=0.0, delta=None)
    assert relative_error(np.mean(shifted, axis=0), expected * ((n - 1) / (n - k**2)) ** 2) < 1e-12


def test_a_sampled_covariance_is_unbiased_and_as_far_off_as_its_number_of_rows_says(x64):
    # For n Gaussian rows the mean squared error of C in the Frobenius norm is (tr S^2 + (tr S)^2) / (n - 1).
    mixing = np.eye(6) + 0.5 * np.random.default_rng(0).normal(size=(6, 6))
    truth = mixing.T @ mixing
    h = np.random.default_rng(1).normal(size=(400, 4, 8, 8, 6)) @ mixing
    found = np.stack([covariance(sampling.keep(jnp.asarray(batch), 2)) for batch in h])
    n = 4 * 4 * 4
    squared_error = ((found - truth) ** 2).sum((1, 2)).mean()
    np.testing.assert_allclose(squared_error, (np.sum(truth**2) + np.trace(truth) ** 2) / (n - 1), rtol=0.1)
    standard_error = np.sqrt(squared_error / len(h))
    assert np.sqrt(((found.mean(axis=0) - truth) ** 2).sum()) < 2 * standard_error


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_features_lose_no_more_than_their_own_rounding(dtype):
    h = jnp.asarray(features((64, 9, 9, 6))).astype(dtype)
    ours = added(vc.VCReg(**WEIGHTS, sample=4).scaled(2.0**10), h)
    expected = torch_gradient(np.asarray(h, np.float64), [[0, 4, 8]] * 2) * 2.0**10
    assert ours.dtype == h.dtype
    assert relative_error(ours, expected) < 2e-2


# The rule


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((128, 56, 56, 256), 4, 4),  # the stages of a ResNet-50 with 128 images
        ((128, 28, 28, 512), 4, 4),
        ((128, 14, 14, 1024), 4, 2),  # 4 would leave 16 * 128 = 2 d rows
        ((128, 7, 7, 2048), 4, 1),  # even all 49 * 128 are but 3 d
        ((128, 50, 768), 4, 1),  # a ViT-B/32: 2 would leave 4.2 d
        ((100_000, 64), 4, 1),  # no positions
        ((24, 4, 1, 8), 4, 3),  # exactly 6 d
        ((24, 3, 1, 8), 4, 2),
        ((23, 3, 1, 8), 4, 1),
    ],
)
def test_the_stride_is_the_largest_that_leaves_six_rows_a_feature(shape, most, expected):
    assert sampling.stride(shape, most) == expected


@pytest.mark.parametrize(("scope", "images"), [("global", 16), (2, 32)])  # of all 32 a sample would be enough
def test_where_too_few_rows_would_be_left_it_is_the_exact_regularizer(x64, scope, images):
    h = features((images, 3, 3, 24))
    exact = torch_gradient(h, [[0, 1, 2]] * 2, scope)
    assert relative_error(added(vc.VCReg(**WEIGHTS, scope=scope, sample=4), jnp.asarray(h)), exact) < 1e-12


def test_it_is_off_by_default():
    assert vc.VCReg() == vc.VCReg(sample=1)


@pytest.mark.parametrize("sample", [0, -2, True])
def test_a_stride_that_is_no_positive_whole_number_is_refused(sample):
    with pytest.raises(ValueError, match=re.escape(f"sample >= 1, a whole number (1 for no sampling), got {sample!r}")):
        vc.VCReg(sample=sample)


# Under transforms and on meshes


@each_scope
def test_vmap_samples_each_batch_by_itself(x64, few_rows_do, scope):
    batches = np.stack([features((6, 7, 5, 3), seed) for seed in range(3)])
    reg = vc.VCReg(**WEIGHTS, scope=scope, sample=2)
    together = jax.jit(jax.vmap(functools.partial(added, reg)))(batches)
    for ours, h in zip(together, batches, strict=True):
        assert relative_error(ours, torch_gradient(h, ([0, 2, 4, 6], [0, 2, 4]), scope)) < 1e-12


SHARDED = ((32, 6, 4), 2, ([0, 2, 4],))  # tokens: with 4 features 96 rows in all, 24 in a group of 8 images
MESHES = {"data": P("data"), "data and tokens": P("data", "sequence")}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit axes"])
@pytest.mark.parametrize("spec", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("scope", ["global", 4])
def test_a_mesh_does_not_change_the_sampled_gradient(x64, spec, axis_type, scope):
    shape, stride, positions = SHARDED
    h, reg = features(shape), vc.VCReg(**WEIGHTS, scope=scope, sample=stride)
    mesh = jax.make_mesh((4, 2), ("data", "sequence"), axis_types=(axis_type, axis_type))
    placed = jax.device_put(h, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        assert relative_error(added(reg, placed), torch_gradient(h, positions, scope)) < 1e-12
        expected = reference.penalty(kept(h, positions), **WEIGHTS, groups=groups_of(scope))
        np.testing.assert_allclose(jax.jit(reg.penalty)(placed), expected, rtol=1e-12)


@pytest.mark.parametrize("scope", ["global", 4])
def test_inside_shard_map_it_is_the_gradient_of_the_whole_batch(x64, scope):
    shape, stride, positions = SHARDED
    h, reg = features(shape), vc.VCReg(**WEIGHTS, scope=scope, sample=stride)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    ours = jax.jit(jax.shard_map(reg.gradient, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(h)
    assert relative_error(ours, torch_gradient(h, positions, scope)) < 1e-12


@pytest.mark.optimized
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit axes"])
@pytest.mark.parametrize(("scope", "expected"), [("global", {"all-reduce": 1}), (4, {})], ids=["global", "groups"])
def test_a_layer_costs_one_all_reduce_and_none_in_groups(scope, expected, axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    h = jax.device_put(np.float32(features(SHARDED[0])), NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        gradient = jax.jit(vc.VCReg(scope=scope, sample=2).gradient, out_shardings=NamedSharding(mesh, P("data")))
        program = gradient.lower(h).compile({"xla_backend_optimization_level": "0"}).as_text()
    found = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program)
    assert Counter(found) == Counter(expected)


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


@pytest.mark.parametrize("reg", [vc.VCReg(sample=2), vc.VCReg(scope=2, sample=2), vc.VCReg(scope=2)], ids=repr)
def test_a_program_may_be_exported_for_any_batch(reg):
    (batch_size,) = jax.export.symbolic_shape("b")
    any_batch = jax.ShapeDtypeStruct((batch_size, 6, 6, 5), jnp.float32)
    program = jax.export.export(jax.jit(reg))(any_batch)
    h = jnp.asarray(features((3, 6, 6, 5)), jnp.float32)
    np.testing.assert_array_equal(program.call(h), h)
