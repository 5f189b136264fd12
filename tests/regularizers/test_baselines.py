"""DeCov and WLD-Reg against their formulas in float64 NumPy and PyTorch's autograd of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from tests.reference import finite_differences

WEIGHTS = {"diversity": 0.7, "activation": 0.3, "gamma": 2.0}
BOTH = [vc.DeCov(0.7), *(vc.WLDReg(**WEIGHTS, variant=variant) for variant in ("direct", "det", "logdet"))]
IDS = ["DeCov", "WLD direct", "WLD det", "WLD logdet"]


def features(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=shape) @ (np.eye(shape[-1]) + 0.4 * rng.normal(size=(shape[-1],) * 2)) + 0.5


def written_out(reg, h: np.ndarray) -> float:
    """The penalty in plain NumPy."""
    rows = h.reshape(-1, h.shape[-1])
    n, d = rows.shape
    if isinstance(reg, vc.DeCov):
        groups = 1 if reg.scope == "global" else reg.scope
        covariances = [np.cov(part, rowvar=False, bias=True) for part in np.split(rows, groups)]
        return float(np.mean([0.5 * reg.weight * ((c**2).sum() - (np.diag(c) ** 2).sum()) for c in covariances]))
    s = np.array([[np.exp(-reg.gamma * (a - b) ** 2).mean() for a in rows.T] for b in rows.T])
    jittered = np.linalg.det(s + 1e-6 * np.eye(d))
    likeness = {"direct": s.sum() - d, "det": -jittered, "logdet": -np.log(jittered)}[reg.variant]
    return reg.diversity * likeness + reg.activation * (rows**2).sum() / n


def torch_gradient(reg, h: np.ndarray) -> np.ndarray:
    leaf = torch.tensor(h, requires_grad=True)
    rows = leaf.flatten(end_dim=-2)
    n, d = rows.shape
    if isinstance(reg, vc.DeCov):
        c = torch.cov(rows.T, correction=0)
        loss = 0.5 * reg.weight * ((c**2).sum() - (c.diagonal() ** 2).sum())
    else:
        s = torch.exp(-reg.gamma * (rows[:, :, None] - rows[:, None, :]) ** 2).mean(0)
        jittered = torch.linalg.det(s + 1e-6 * torch.eye(d, dtype=s.dtype))
        likeness = {"direct": s.sum() - s.trace(), "det": -jittered, "logdet": -jittered.log()}[reg.variant]
        loss = reg.diversity * likeness + reg.activation * (rows**2).sum() / n
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def added(reg, h) -> np.ndarray:
    program = jax.jit(lambda h: jax.vjp(reg, h)[1](jnp.zeros_like(h))[0])  # one, not one an operation
    return np.asarray(program(h))


@pytest.mark.parametrize("shape", [(9, 4), (3, 2, 2, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("reg", BOTH, ids=IDS)
def test_penalty_and_gradient_equal_numpys_and_torchs(reg, shape, x64):
    h = features(*shape)
    np.testing.assert_allclose(jax.jit(reg.penalty)(jnp.asarray(h)), written_out(reg, h), rtol=1e-11)
    gradient = added(reg, jnp.asarray(h))
    np.testing.assert_allclose(gradient, torch_gradient(reg, h), rtol=1e-9, atol=1e-13)
    numeric = finite_differences(lambda moved: written_out(reg, moved), h)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(reg(jnp.asarray(h)), h)


@pytest.mark.parametrize("groups", [1, 3])
def test_decov_is_equation_4_with_another_weight(groups, x64):
    """beta = weight d (d - 1) / 2 ((n - 1) / n)^2, by two independent formulas of NumPy's."""
    h = features(12, 5)
    n, d = 12 // groups, 5
    beta = 0.3 * d * (d - 1) / 2 * ((n - 1) / n) ** 2
    decov = vc.DeCov(0.3, scope=groups)
    np.testing.assert_allclose(jax.jit(decov.penalty)(jnp.asarray(h)), written_out(decov, h), rtol=1e-12)
    unbiased = [np.cov(part, rowvar=False) for part in np.split(h, groups)]
    equation_4 = np.mean([(c**2).sum() - (np.diag(c) ** 2).sum() for c in unbiased]) / (d * (d - 1))
    np.testing.assert_allclose(decov.penalty(jnp.asarray(h)), beta * equation_4, rtol=1e-12)
    np.testing.assert_allclose(
        added(decov, jnp.asarray(h)), added(vc.VCReg(0.0, beta, scope=groups), jnp.asarray(h)), rtol=1e-12
    )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("reg", BOTH, ids=IDS)
def test_a_batch_split_over_eight_devices_has_the_gradient_of_a_whole_one(reg, axis_type, x64):
    h = features(16, 4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        split = jax.device_put(h, NamedSharding(mesh, PartitionSpec("data")))
        gradient = jax.jit(lambda h: jax.vjp(reg, h)[1](jnp.zeros_like(h))[0])(split)
        penalty = jax.jit(reg.penalty)(split)
    np.testing.assert_allclose(gradient, torch_gradient(reg, h), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(penalty, written_out(reg, h), rtol=1e-11)


@pytest.mark.parametrize("reg", BOTH, ids=IDS)
def test_inside_shard_map_it_is_the_whole_batchs(reg, x64):
    h = features(16, 4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def loss(h):
        zero = jnp.zeros((), h.dtype) * reg(h).sum()
        return jax.lax.pmean(zero, "data")

    def gradient(h):
        return jax.grad(loss)(h)

    found = jax.jit(
        jax.shard_map(gradient, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    )(h)
    np.testing.assert_allclose(found, torch_gradient(reg, h), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("reg", BOTH, ids=IDS)
def test_weights_may_be_traced_and_bfloat16_stays_bfloat16(reg):
    h = jnp.asarray(features(9, 4), jnp.float32)
    several = jax.jit(jax.vmap(lambda weight: jax.vjp(reg.scaled(weight), h)[1](jnp.zeros_like(h))[0]))
    scaled = several(jnp.asarray([1.0, 3.0]))
    np.testing.assert_allclose(scaled[0], torch_gradient(reg, np.asarray(h, np.float64)), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(scaled[1], 3 * scaled[0], rtol=1e-5, atol=1e-7)
    half = h.astype(jnp.bfloat16)
    gradient = added(reg, half)
    assert gradient.dtype == jnp.bfloat16
    # Not of h but of h rounded.
    expected = torch_gradient(reg, np.asarray(half, np.float64))
    np.testing.assert_allclose(np.float64(gradient), expected, atol=0.02 * np.abs(expected).max())


def test_equal_features_are_finite_in_every_variant(x64):
    h = np.repeat(features(6, 1), 3, axis=1)
    for reg in BOTH:
        assert np.isfinite(reg.penalty(jnp.asarray(h))) and np.isfinite(added(reg, jnp.asarray(h))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vc.DeCov(-1.0), "DeCov needs weight >= 0, got -1.0"),
        (lambda: vc.DeCov(scope=0), "scope"),
        (lambda: vc.WLDReg(diversity=-1.0), "WLDReg needs diversity >= 0, got -1.0"),
        (lambda: vc.WLDReg(gamma=0.0), "WLDReg needs gamma > 0, got 0.0"),
        (lambda: vc.DeCov()(jnp.zeros(3)), "at least two axes"),
        (lambda: vc.WLDReg()(jnp.zeros(3)), "at least two axes"),
    ],
)
def test_bad_input_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
