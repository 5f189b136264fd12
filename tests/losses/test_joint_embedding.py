"""The losses of two views against their formulas in float64 NumPy and the published code's in PyTorch."""

import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody does
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from configs import table4_simclr
from tests.reference import finite_differences
from train.trainer.prepare import prepare
from vcreg_jax import Sites

LOSSES = {
    "NTXent": vc.losses.NTXent(temperature=0.2),
    "NTXent, the paper's mean": vc.losses.NTXent(temperature=0.5, sum_views=1.0),
    "VICReg": vc.losses.VICReg(),
    "VICReg, other conventions": vc.losses.VICReg(3.0, 2.0, 5.0, 1e-3, True, True),
    "BarlowTwins": vc.losses.BarlowTwins(),
    "BarlowTwins, scaled": vc.losses.BarlowTwins(0.3, 0.025, 1e-3),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
each_default = pytest.mark.parametrize(
    "loss", [vc.losses.NTXent(), vc.losses.VICReg(), vc.losses.BarlowTwins()], ids=repr
)


def views(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(n, d)) @ (np.eye(d) + 0.4 * rng.normal(size=(d, d))) + 0.5
    return first, first + 0.3 * rng.normal(size=(n, d))


def written_out(loss, first: np.ndarray, second: np.ndarray) -> float:
    """The formula as its paper prints it, by loops where it has sums."""
    n, d = first.shape
    if isinstance(loss, vc.losses.NTXent):
        z = [row / np.linalg.norm(row) for row in (*first, *second)]
        total = 0.0
        for i in range(2 * n):
            s = [np.exp(z[i] @ z[j] / loss.temperature) for j in range(2 * n)]
            total -= np.log(s[(i + n) % (2 * n)] / (sum(s) - s[i]))
        return loss.sum_views * total / (2 * n)
    if isinstance(loss, vc.losses.VICReg):
        total = loss.similarity * np.square(first - second).mean()
        for z in (first, second):
            c = np.cov(z, rowvar=False)
            pairs = sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
            hinge = np.mean([max(0, 1 - np.sqrt(c[i, i] + loss.eps)) for i in range(d)])
            total += loss.variance * hinge * (1 if loss.sum_variance_over_views else 0.5)
            total += loss.covariance * pairs / (d * (d - 1) if loss.covariance_per_pair else d)
        return float(total)
    y = [(z - z.mean(0)) / np.sqrt(z.var(0) + loss.eps) for z in (first, second)]
    total = 0.0
    for i in range(d):
        for j in range(d):
            r = np.mean(y[0][:, i] * y[1][:, j])
            total += (1 - r) ** 2 if i == j else loss.redundancy * r**2
    return loss.scale * total


def published(loss, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The code of facebookresearch/vicreg and barlowtwins, and of google-research/simclr in torch's terms."""
    n, d = first.shape
    if isinstance(loss, vc.losses.NTXent):
        a, b, own, labels = F.normalize(first), F.normalize(second), 1e9 * torch.eye(n), torch.arange(n)
        halves = [
            F.cross_entropy(torch.cat([x @ y.T, x @ x.T - loss.temperature * own], 1) / loss.temperature, labels)
            for x, y in ((a, b), (b, a))
        ]
        return loss.sum_views / 2 * (halves[0] + halves[1])
    if isinstance(loss, vc.losses.VICReg):
        both = [z - z.mean(0) for z in (first, second)]
        hinges = [F.relu(1 - torch.sqrt(z.var(0) + loss.eps)).mean() for z in both]
        covariances = [z.T @ z / (n - 1) for z in both]
        pairs = [c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].pow(2).sum() for c in covariances]
        spread = sum(hinges) / (1 if loss.sum_variance_over_views else 2)
        correlated = sum(pairs) / (d * (d - 1) if loss.covariance_per_pair else d)
        return loss.similarity * F.mse_loss(first, second) + loss.variance * spread + loss.covariance * correlated
    y = [F.batch_norm(z, None, None, training=True, eps=loss.eps) for z in (first, second)]
    c = y[0].T @ y[1] / n
    off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].pow(2).sum()
    return loss.scale * ((torch.diagonal(c) - 1).pow(2).sum() + loss.redundancy * off_diagonal)


def torch_gradients(loss, first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    leaves = [torch.tensor(z, requires_grad=True) for z in (first, second)]
    value = published(loss, *leaves)
    return value.item(), *(g.numpy() for g in torch.autograd.grad(value, leaves))


@each_loss
@pytest.mark.parametrize("shape", [(7, 4), (2, 6)], ids=str)
def test_the_loss_is_the_formula_and_the_published_code(loss, shape, x64):
    first, second = views(*shape)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(first, second)
    theirs, *their_gradients = torch_gradients(loss, first, second)
    np.testing.assert_allclose(value, written_out(loss, first, second), rtol=1e-10)
    np.testing.assert_allclose(value, theirs, rtol=1e-10)
    for ours, torchs in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(ours, torchs, rtol=1e-10, atol=1e-10)
    numeric = finite_differences(lambda z: written_out(loss, z, second), first)
    np.testing.assert_allclose(gradients[0], numeric, rtol=2e-5, atol=2e-6 * np.abs(numeric).max())


@each_default
def test_statistics_and_negatives_are_those_of_the_whole_batch_over_eight_devices(loss, x64):
    first, second = views(16, 4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        split = [jax.device_put(z, NamedSharding(mesh, PartitionSpec("data"))) for z in (first, second)]
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*split)
    theirs, *their_gradients = torch_gradients(loss, first, second)
    np.testing.assert_allclose(value, theirs, rtol=1e-10)
    for ours, torchs in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(ours, torchs, rtol=1e-10, atol=1e-10)


@each_default
def test_bfloat16_embeddings_are_summed_in_float32(loss):
    halves = [jnp.asarray(z, jnp.bfloat16) for z in views(64, 8)]
    value = jax.jit(loss)(*halves)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, written_out(loss, *(np.asarray(z, np.float64) for z in halves)), rtol=1e-5)


@each_default
def test_collapsed_embeddings_have_finite_gradients(loss):
    for same in (jnp.zeros((4, 3)), jnp.ones((4, 3))):
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(same, same)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@each_default
@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((4, 4), (4, 5)), ((4, 4), (5, 4)), ((4,), (4,))], ids=str)
def test_embeddings_that_are_no_two_views_are_refused(loss, shapes):
    without_type_checks = inspect.unwrap(type(loss).__call__)
    with pytest.raises(ValueError, match=r"two views of the same n >= 2 images"):
        without_type_checks(loss, *(jnp.ones(shape) for shape in shapes))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"temperature > 0, got 0"):
        vc.losses.NTXent(temperature=0.0)


def test_a_batch_of_views_that_does_not_divide_over_the_devices_is_refused_before_any_work():
    config = table4_simclr.get_config()
    with pytest.raises(
        ValueError, match=r"batch_size must divide by the 8 devices, got 4100\. Nearest: 4096 or 4104\.$"
    ):
        prepare(replace(config.train, batch_size=4100), Sites())  # before the data are looked for
