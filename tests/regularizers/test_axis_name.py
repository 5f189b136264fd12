"""With `axis_name`, the mean of all devices' own gradients is that of loss and penalty of the whole batch."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import vcreg_jax as vc
from tests import reference
from tests.regularizers.test_sharding import collectives

P = PartitionSpec
MASK = np.random.default_rng(1).random((16, 4)) < [1.0, 1.0, 0.4, 0.4]  # two rows of each group have a covariance
ALL = np.ones((16, 4), bool)


def tokens() -> np.ndarray:
    """Whose shards of two rows differ in mean and size."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 4, 5)) * np.linspace(0.4, 1.6, 16)[:, None, None] + rng.normal(size=(16, 1, 1))


def weights() -> np.ndarray:
    return np.eye(5) + 0.2 * np.random.default_rng(1).normal(size=(5, 5))


def torch_vcreg(h: torch.Tensor, groups: int = 1) -> torch.Tensor:
    return reference.torch_penalty(h, 0.64, 0.08, 0.25, 1e-4, groups)


def torch_decov(h: torch.Tensor) -> torch.Tensor:
    c = torch.cov(h.flatten(end_dim=-2).T, correction=0)
    return 0.35 * ((c**2).sum() - (c.diagonal() ** 2).sum())


def torch_wld(h: torch.Tensor) -> torch.Tensor:
    rows = h.flatten(end_dim=-2)
    s = torch.exp(-2.0 * (rows[:, :, None] - rows[:, None, :]) ** 2).mean(0)
    return 0.7 * (s.sum() - s.trace()) + 0.3 * (rows**2).sum(1).mean()


VCREG = vc.VCReg(delta=0.25, axis_name="devices")
GROUPS = vc.VCReg(delta=0.25, scope=16, axis_name="devices")
DECOV = vc.DeCov(0.7, axis_name="devices")
WLD = vc.WLDReg(diversity=0.7, activation=0.3, gamma=2.0, axis_name="devices")
# A regularizer of a shard's mask, whether the mask is some rows or all, and PyTorch's penalty of the whole batch.
CASES = {
    "global": (lambda mask: VCREG, ALL, torch_vcreg),
    "groups": (lambda mask: GROUPS, ALL, functools.partial(torch_vcreg, groups=16)),
    "explicit": (lambda mask: vc.explicit(VCREG), ALL, torch_vcreg),
    "scaled": (lambda mask: VCREG.scaled(0.5), ALL, lambda h: 0.5 * torch_vcreg(h)),
    "tuple": (lambda mask: vc.VCReg(delta=0.25, axis_name=("devices",)), ALL, torch_vcreg),
    "DeCov": (lambda mask: DECOV, ALL, torch_decov),
    "WLDReg": (lambda mask: WLD, ALL, torch_wld),
    "masked": (lambda mask: vc.masked(VCREG, mask), MASK, torch_vcreg),
    "masked groups": (
        lambda mask: vc.masked(GROUPS, mask),
        MASK,
        lambda h: torch.stack([torch_vcreg(part[None]) for part in h.split(MASK.sum(axis=1).tolist())]).mean(),
    ),
    "masked WLDReg": (lambda mask: vc.masked(WLD, mask), MASK, torch_wld),
}


@functools.cache
def expected(case: str) -> tuple[np.ndarray, np.ndarray, float]:
    """The gradient of loss and penalty of the whole batch, that of the loss alone, and the penalty: all by PyTorch."""
    _, mask, penalty = CASES[case]
    w = torch.tensor(weights(), requires_grad=True)
    h = torch.tensor(tokens()) @ w
    loss = torch.tanh(h).square().mean()
    of_batch = penalty(h[torch.tensor(mask)] if case.startswith("masked") else h)
    (alone,) = torch.autograd.grad(loss, w, retain_graph=True)
    (both,) = torch.autograd.grad(loss + of_batch, w)
    return both.numpy(), alone.numpy(), of_batch.item()


def local_gradient(w, h, mask, make):
    return jax.grad(lambda w: jnp.mean(jnp.tanh(make(mask)(h @ w)) ** 2))(w)


def mean_gradient(w, h, mask, make):
    """What is trained with: each device's own gradient, averaged; and the penalty."""
    return lax.pmean(local_gradient(w, h, mask, make), "devices"), make(mask).penalty(h @ w)


def under_shard_map(step, check_vma: bool):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("devices"), P("devices")), "out_specs": P()}
    return jax.jit(jax.shard_map(step, mesh=mesh, **specs, check_vma=check_vma))


def by_device(transformed, w, h, mask):
    """Of a function over a leading axis of devices, what all of them return."""
    found = transformed(w, h.reshape(8, 2, *h.shape[1:]), mask.reshape(8, 2, *mask.shape[1:]))
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(leaf, np.broadcast_to(leaf[:1], leaf.shape), rtol=1e-12)
    return jax.tree.map(lambda leaf: leaf[0], found)


def run(how: str, make, w, h, mask):
    step = functools.partial(mean_gradient, make=make)
    over_devices = {"in_axes": (None, 0, 0), "axis_name": "devices"}
    if how == "pmap":
        return by_device(jax.pmap(step, **over_devices), w, h, mask)
    if how == "vmap":
        return by_device(jax.jit(jax.vmap(step, **over_devices)), w, h, mask)
    if how == "shard_map, unchecked":
        return under_shard_map(step, check_vma=False)(w, h, mask)

    def of_own_weights(w, h, mask):  # else their gradient would be a sum over devices already
        return step(lax.pcast(w, "devices", to="varying"), h, mask)

    return under_shard_map(of_own_weights, check_vma=True)(w, h, mask)


@pytest.mark.parametrize(
    ("case", "how"),
    [(case, how) for case in CASES for how in ("pmap", "shard_map, checked")]
    + [(case, how) for case in ("global", "explicit", "masked") for how in ("vmap", "shard_map, unchecked")],
)
def test_the_mean_of_the_devices_gradients_is_that_of_the_whole_batch(x64, case, how):
    make, mask, _ = CASES[case]
    both, alone, penalty = expected(case)
    ours, value = run(how, make, weights(), tokens(), mask)
    assert np.abs(ours - both).max() < 1e-10 * np.abs(both - alone).max()
    np.testing.assert_allclose(value, penalty, rtol=1e-10)
    assert np.abs(both - alone).max() > 1e-2 * np.abs(alone).max(), "the penalty must be felt, or nothing is shown"


def test_two_axes_and_one_that_a_mesh_knows_as_well(x64):
    both, _, penalty = expected("global")
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    reg = vc.VCReg(delta=0.25, axis_name=("data", "fsdp"))

    def step(w, h):
        w = lax.pcast(w, ("data", "fsdp"), to="varying")
        gradient = jax.grad(lambda w: jnp.mean(jnp.tanh(reg(h @ w)) ** 2))(w)
        return lax.pmean(gradient, ("data", "fsdp")), reg.penalty(h @ w)

    ours, value = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(("data", "fsdp"))), out_specs=P()))(
        weights(), tokens()
    )
    np.testing.assert_allclose(ours, both, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(value, penalty, rtol=1e-10)


def test_a_network_trained_under_pmap_is_the_one_trained_under_jit(x64):
    x, y = np.random.default_rng(2).normal(size=(32, 6)), np.arange(32) % 3

    def network(reg):
        rngs = nnx.Rngs(0)
        layers = [
            nnx.Linear(6, 12, param_dtype=float, rngs=rngs),
            nnx.relu,
            nnx.Linear(12, 3, param_dtype=float, rngs=rngs),
        ]
        model = nnx.Sequential(*layers)
        vc.attach(model, reg, where="layers/0")
        return nnx.split(model)

    optimizer = optax.sgd(0.1, momentum=0.9)

    def trained(reg, transform, average, x, y):
        graphdef, params = network(reg)

        def step(params, state, x, y):
            def loss(params):
                logits = nnx.merge(graphdef, params)(x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            updates, state = optimizer.update(average(jax.grad(loss)(params)), state)
            return optax.apply_updates(params, updates), state

        state, step = optimizer.init(params), transform(step)
        for _ in range(5):
            params, state = step(params, state, x, y)
        return jax.tree.leaves(jax.device_get(params))

    over_devices = functools.partial(jax.pmap, axis_name="batch", in_axes=(None, None, 0, 0), out_axes=None)
    in_shards = x.reshape(8, 4, 6), y.reshape(8, 4)
    ours = trained(vc.VCReg(axis_name="batch"), over_devices, lambda g: lax.pmean(g, "batch"), *in_shards)
    whole = trained(vc.VCReg(), jax.jit, lambda g: g, x, y)
    without = trained(lambda h: h, jax.jit, lambda g: g, x, y)
    for a, b, c in zip(ours, whole, without, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
        assert np.abs(b - c).max() > 1e-4


@pytest.mark.optimized
@pytest.mark.parametrize("reg", [VCREG, DECOV], ids=["VCReg", "DeCov"])
def test_a_layer_costs_at_most_one_all_reduce_and_none_in_groups(reg):
    def count(reg):
        step = under_shard_map(
            lambda w, h, mask: lax.pmean(local_gradient(w, h, mask, lambda mask: reg), "devices"), check_vma=False
        )
        return collectives(step, np.float32(weights()), np.float32(tokens()), ALL)

    without = count(vc.identity)
    assert count(GROUPS) == without == Counter({"all-reduce": 1})
    assert count(reg) == Counter({"all-reduce": 2})


@pytest.mark.parametrize("reg", [VCREG, DECOV, WLD, vc.explicit(VCREG), vc.masked(VCREG, ALL)])
def test_an_axis_that_is_not_bound_is_the_identity_forward_and_an_error_in_one_line_backward(reg):
    h = jnp.asarray(tokens(), jnp.float32)
    np.testing.assert_array_equal(jax.jit(lambda h: reg(h))(h), h)  # evaluation
    message = re.escape(
        "axis_name='devices' is not bound where statistics over it are asked for. Differentiate or diagnose inside of "
        "a pmap, vmap or shard_map with this axis name; under jit alone leave axis_name out."
    )
    with pytest.raises(ValueError, match=message):
        jax.jit(jax.grad(lambda h: reg(h).sum()))(h)


@pytest.mark.parametrize("kind", [vc.VCReg, vc.DeCov, vc.WLDReg])
def test_what_is_no_axis_name_is_refused(kind):
    reg = kind()
    object.__setattr__(reg, "axis_name", ())
    with pytest.raises(ValueError, match=r"needs axis_name to be a string, a tuple of strings or None, got \(\)"):
        reg.__post_init__()
