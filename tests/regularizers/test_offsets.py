"""Features far from 0 lose nothing: means up to 100,000 standard deviations and a million rows, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from tests import reference
from train.experiments import gradient_probe
from vcreg_jax.models.layers import BatchNorm
from vcreg_jax.probes import linear, quick

P = PartitionSpec
REG = vc.VCReg(delta=0.5)
FLOAT32, BFLOAT16 = 1e-5, 1e-2  # the second is what rounding of the operands of products costs


def features(*shape: int, mean: float = 1e5, std: float = 1.0, dtype: str = "float32") -> jax.Array:
    """Correlated features of standard deviations on both sides of 1, as they are stored; the mean has both signs."""
    d = shape[-1]
    rng = np.random.default_rng(0)
    spread = np.where(np.arange(d) % 2, 1.5, 0.6)
    h = rng.normal(size=shape) @ (np.eye(d) + 0.2 * rng.normal(size=(d, d))) * spread
    return jnp.asarray(std * h + mean * (-1.0) ** (np.arange(d) // 2), jnp.float32).astype(dtype)


def torch_gradient(h, groups: int = 1) -> np.ndarray:
    leaf = torch.tensor(np.asarray(h, np.float64), requires_grad=True)
    loss = reference.torch_penalty(leaf, REG.alpha, REG.beta, REG.delta, REG.eps, groups)  # pyright: ignore
    return torch.autograd.grad(loss, leaf)[0].numpy()


def numpy_penalty(h, groups: int = 1) -> float:
    h = np.asarray(h, np.float64)
    return reference.penalty(h, alpha=REG.alpha, beta=REG.beta, delta=REG.delta, groups=groups)  # pyright: ignore


def error(actual, expected: np.ndarray) -> float:
    """The largest difference over the largest entry."""
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("rows", "d", "mean", "std", "dtype"),
    [
        (4096, 64, 1e3, 0.1, "float32"),
        (65536, 64, 1e4, 1.0, "float32"),
        (65536, 16, 1e5, 1.0, "float32"),
        (1_000_000, 8, 300.0, 1.0, "float32"),
        (1_000_000, 8, 1e5, 1.0, "float32"),
        (1_000_000, 8, 1e3, 0.01, "float32"),
        (1_000_000, 8, 300.0, 1.0, "bfloat16"),
    ],
)
def test_gradient_and_penalty_are_those_of_float64(rows, d, mean, std, dtype):
    h = features(rows, d, mean=mean, std=std, dtype=dtype)
    expected = torch_gradient(h)
    run = jax.jit(lambda h: (REG.gradient(h), jax.grad(REG.penalty)(h.astype(jnp.float32)), REG.penalty(h)))
    closed_form, autodiff, penalty = run(h)
    assert error(closed_form, expected) < (BFLOAT16 if dtype == "bfloat16" else FLOAT32)
    assert error(autodiff, expected) < FLOAT32
    np.testing.assert_allclose(penalty, numpy_penalty(h), rtol=1e-6)


def added(reg: vc.Regularizer, h: jax.Array) -> jax.Array:
    """What the backward pass of `reg` adds to a zero gradient."""
    return jax.jit(lambda h: jax.vjp(reg, h)[1](jnp.zeros_like(h))[0])(h)


def masked_gradient(h: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """Of the rows kept by a mask, and PyTorch's of these rows alone; what is left out is NaN and must not matter."""
    mask = np.random.default_rng(1).random(h.shape[:-1]) < 0.6
    h = jnp.where(mask[..., None], h, jnp.nan)
    return added(vc.masked(REG, mask), h)[mask], torch_gradient(h[mask])


SCOPES = {
    "global": lambda h: (jax.jit(REG.gradient)(h), torch_gradient(h)),
    "groups": lambda h: (jax.jit(vc.VCReg(delta=0.5, scope=4).gradient)(h), torch_gradient(h, groups=4)),
    "masked": masked_gradient,
    "on_axis": lambda h: (
        added(vc.on_axis(REG, 1), jnp.moveaxis(h, -1, 1)),
        np.moveaxis(torch_gradient(h), -1, 1),
    ),
    "sample": lambda h: (
        jax.jit(vc.VCReg(delta=0.5, sample=2).gradient)(h)[:, ::2, ::2],
        torch_gradient(h[:, ::2, ::2]),
    ),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_in_every_scope(scope):
    ours, expected = SCOPES[scope](features(64, 8, 8, 6))
    assert error(ours, expected) < FLOAT32


MESHES = {"auto": AxisType.Auto, "explicit axes": AxisType.Explicit, "shard_map": None}


@pytest.mark.parametrize("kind", MESHES)
def test_on_a_mesh_whose_shards_have_means_of_their_own(kind):
    h = features(64, 8, 6) + np.linspace(-1, 1, 64, dtype=np.float32)[:, None, None]
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(MESHES[kind] or AxisType.Auto,) * 2)
    spec = P(("data", "fsdp"))
    regs = {"global": (REG, 1), "groups": (vc.VCReg(delta=0.5, scope=8), 8), "explicit": (vc.explicit(REG), 1)}
    split = jax.device_put(h, NamedSharding(mesh, spec))

    def gradients(h):
        return {name: reg.gradient(h) for name, (reg, _) in regs.items()}

    if kind == "shard_map":
        gradients = jax.shard_map(gradients, mesh=mesh, in_specs=spec, out_specs=spec)
    with jax.set_mesh(mesh):
        ours = jax.jit(gradients)(split)
    for name, (_, groups) in regs.items():
        assert error(ours[name], torch_gradient(h, groups)) < FLOAT32, name


@pytest.mark.parametrize("value", [0.1, -1e5 / 3, 3e-39])
@pytest.mark.parametrize("axis_type", [None, AxisType.Auto], ids=["one device", "mesh"])
def test_constant_features_get_exactly_nothing(value, axis_type):
    h = jnp.full((48, 3, 4), value, jnp.float32)
    if axis_type is not None:
        mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
        h = jax.device_put(h, NamedSharding(mesh, P("data")))
    mask = np.arange(48) % 3 > 0
    regs = [REG, vc.VCReg(scope=8), vc.explicit(REG), vc.DeCov(), vc.masked(REG, mask), vc.VCReg(scale="algorithm_1")]
    for gradient in jax.jit(lambda h: [reg.gradient(h) for reg in regs])(h):
        np.testing.assert_array_equal(gradient, 0.0)


def test_decov_is_that_of_float64():
    h = features(4096, 6)
    leaf = torch.tensor(np.asarray(h, np.float64), requires_grad=True)
    c = torch.cov(leaf.T, correction=0)
    (expected,) = torch.autograd.grad(0.05 * ((c**2).sum() - (c.diagonal() ** 2).sum()), leaf)
    assert error(jax.jit(vc.DeCov(0.1).gradient)(h), expected.numpy()) < FLOAT32
    numpys = np.cov(np.asarray(h, np.float64), rowvar=False, bias=True)
    expected = 0.05 * ((numpys**2).sum() - (np.diag(numpys) ** 2).sum())
    np.testing.assert_allclose(vc.DeCov(0.1).penalty(h), expected, rtol=FLOAT32)


def effective_rank(x: np.ndarray) -> float:
    s = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def test_diagnosis_and_metrics_are_those_of_float64():
    h = features(4096, 6)
    wide = np.asarray(h, np.float64)
    c = np.cov(wide, rowvar=False)
    off = c[~np.eye(6, dtype=bool)]
    found = vc.diagnose(h, delta=0.5)
    expected = (np.diag(c) < 1).mean(), np.sqrt(np.diag(c)).mean(), np.sqrt((off**2).mean()), (abs(off) > 0.5).mean()
    np.testing.assert_allclose(found, [*expected, effective_rank(wide)], rtol=FLOAT32)
    np.testing.assert_allclose(vc.metrics.effective_rank(h), effective_rank(wide), rtol=FLOAT32)
    np.testing.assert_allclose(vc.metrics.moments(h).covariance(), c, atol=FLOAT32)
    keep = np.arange(4096) % 3 > 0
    np.testing.assert_allclose(
        vc.metrics.moments(h, jnp.asarray(keep)).covariance(), np.cov(wide[keep], rowvar=False), atol=FLOAT32
    )
    x = wide - wide.mean(axis=0)
    a, b = x[:, :4], x[:, 2:]
    cka = ((a.T @ b) ** 2).sum() / np.sqrt(((a.T @ a) ** 2).sum() * ((b.T @ b) ** 2).sum())
    np.testing.assert_allclose(vc.metrics.linear_cka(h[:, :4], h[:, 2:]), cka, rtol=FLOAT32)


def test_cdnv_is_that_of_float64():
    labels = np.arange(4096) % 5
    labels[labels == 0] = 4  # the first class has no rows
    h = features(4096, 6) + np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)[labels]
    own = [np.asarray(h, np.float64)[labels == c] for c in range(1, 5)]
    pairs = [
        (a.var(axis=0).sum() + b.var(axis=0).sum()) / (2 * ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
        for i, a in enumerate(own)
        for b in own[:i]
    ]
    np.testing.assert_allclose(vc.metrics.cdnv(h, jnp.asarray(labels), 5), np.mean(pairs), rtol=FLOAT32)


def test_standardized_features_are_scikit_learns_in_float64_and_constant_ones_are_0():
    from sklearn.preprocessing import StandardScaler

    h = np.array(features(4096, 6))
    h[:, 5] = 0.1
    mask = np.arange(4096) % 3 > 0
    rows = linear._Rows(jnp.asarray(h), jnp.zeros(4096, int), jnp.asarray(mask))
    ours = linear._standardize(rows, by=rows).features
    expected = np.array(StandardScaler().fit(np.float64(h[mask])).transform(np.float64(h)))
    expected[:, 5] = 0.0
    np.testing.assert_allclose(ours, expected, atol=FLOAT32)


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (1e3, 0.1), (1e5, 1.0), (1e3, 0.01)])
def test_the_gradient_probe_standardizes_as_scikit_learn_and_pytorch_do_in_float64(mean, std):
    from sklearn.preprocessing import StandardScaler

    h = np.array(features(4096, 6, mean=mean, std=std))
    h[:, 5] = 0.1
    ours = gradient_probe._scale(h, *gradient_probe._moments(h, rows=1000))
    wide = torch.tensor(h, dtype=torch.float64)
    expected = np.array(StandardScaler().fit_transform(np.float64(h)))
    np.testing.assert_allclose(ours[:, :5], expected[:, :5], atol=FLOAT32)
    spread, middle = torch.std_mean(wide, dim=0, correction=0)
    np.testing.assert_allclose(ours[:, :5], ((wide - middle) / spread)[:, :5], atol=FLOAT32)
    np.testing.assert_array_equal(ours[:, 5], 0.0)


@pytest.mark.parametrize(("mean", "rounding"), [(1.0, 1e-6), (1e3, 2e-4), (1e5, 2e-2)])
def test_batch_norm_loses_what_the_rounding_of_a_float32_mean_costs_and_no_more(mean, rounding):
    """Against torch's in float64; in float32 torch's own is off by 1.8 in the variance at 1e5."""
    h, pull = features(64, 14, 14, 6, mean=mean), features(64, 14, 14, 6, mean=0.0)[::-1]
    graphdef, values = nnx.split(BatchNorm(6))

    def run(h):
        norm = nnx.merge(graphdef, values, copy=True)
        y = norm(h, train=True)
        return (y * pull).sum(), (y, norm.mean[...], norm.var[...])

    gradient, ours = jax.jit(jax.grad(run, has_aux=True))(h)
    leaf = torch.tensor(np.asarray(h, np.float64)).permute(0, 3, 1, 2).requires_grad_(True)
    norm = torch.nn.BatchNorm2d(6).double()
    (norm(leaf) * torch.tensor(np.asarray(pull, np.float64)).permute(0, 3, 1, 2)).sum().backward()
    wide = np.asarray(h, np.float64).reshape(-1, 6)
    y = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0) + norm.eps)
    np.testing.assert_allclose(ours[0].reshape(-1, 6), y, atol=rounding)
    np.testing.assert_allclose(ours[0], norm(leaf).detach().permute(0, 2, 3, 1), atol=rounding)
    np.testing.assert_allclose(ours[1], 0.1 * wide.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(ours[2], 0.9 + 0.1 * wide.var(axis=0, ddof=1), rtol=3e-5)
    assert leaf.grad is not None
    through_y = rounding * np.abs((y * np.asarray(pull).reshape(-1, 6)).mean(axis=0)).max()  # the gradient's term in y
    assert error(gradient, leaf.grad.permute(0, 2, 3, 1).numpy()) < 3e-5 + through_y


def test_ridge_predicts_what_it_predicts_of_centred_features():
    h = features(400, 6)
    labels = jnp.argmax(h - h.mean(axis=0, keepdims=True), axis=1)
    centred = np.asarray(h, np.float64)
    centred = jnp.asarray(centred - centred.mean(axis=0), jnp.float32)
    ridge = functools.partial(quick.ridge, num_classes=6, l2=jnp.asarray([1.0]))
    np.testing.assert_array_equal(ridge(h, labels, h), ridge(centred, labels, centred))


def ntxent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """The formula by the margins to the positive, in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s, n = z @ z.T / temperature, len(first)
    total = 0.0
    for i in range(2 * n):
        others = [s[i, j] - s[i, (i + n) % (2 * n)] for j in range(2 * n) if j % n != i % n]
        total += np.log1p(np.exp(others).sum())
    return 2 * total / (2 * n)


@pytest.mark.parametrize(("n", "temperature", "noise"), [(64, 0.05, 0.1), (32, 0.04, 0.05), (16, 0.5, 1.0)])
def test_ntxent_of_solved_pairs_keeps_its_digits(n, temperature, noise):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(n, 128)).astype(np.float32)
    second = (first + noise * rng.normal(size=first.shape)).astype(np.float32)
    ours, gradient = jax.jit(jax.value_and_grad(vc.losses.NTXent(temperature)))(first, second)
    np.testing.assert_allclose(ours, ntxent(first, second, temperature), rtol=1e-5)
    leaves = [torch.tensor(np.float64(z), requires_grad=True) for z in (first, second)]
    z = torch.nn.functional.normalize(torch.cat(leaves))
    scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    loss = 2 * torch.nn.functional.cross_entropy(scores, (torch.arange(2 * n) + n) % (2 * n))
    assert error(gradient, torch.autograd.grad(loss, leaves)[0].numpy()) < FLOAT32
