"""Masks against the kept rows alone, and channels first against the axis moved by NumPy, in float64."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc
from tests import reference
from tests.reference import finite_differences
from tests.regularizers.test_sharding import collectives
from vcreg_jax.regularizers import sampling

WLD = {"diversity": 0.7, "activation": 0.3, "gamma": 2.0}
REGS = {
    "VCReg": vc.VCReg(alpha=0.7, beta=0.3),
    "smooth L1": vc.VCReg(alpha=0.7, beta=0.3, delta=0.2),
    "Algorithm 1": vc.VCReg(alpha=0.7, beta=0.03, scale="algorithm_1"),
    "DeCov": vc.DeCov(0.7),
    "WLD direct": vc.WLDReg(**WLD),
    "WLD logdet": vc.WLDReg(**WLD, variant="logdet"),
}
every_reg = pytest.mark.parametrize("reg", REGS.values(), ids=REGS)


def features(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 0.6 * rng.normal(size=shape) @ (np.eye(shape[-1]) + 0.4 * rng.normal(size=(shape[-1],) * 2)) + 0.5


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape) < 0.6


def added(reg, h, incoming=None):
    return jax.vjp(reg, h)[1](jnp.zeros_like(h) if incoming is None else incoming)[0]


@every_reg
def test_masked_is_the_regularizer_of_the_kept_rows_alone(reg, x64):
    h, mask = features(16, 5, 4), some(16, 5)
    h[~mask] = np.nan  # what padding holds must not matter
    alone = jnp.asarray(h[mask])
    masked = jax.jit(lambda h, mask: (vc.masked(reg, mask).penalty(h), added(vc.masked(reg, mask), h)))
    penalty, gradient = masked(h, mask)
    np.testing.assert_allclose(penalty, reg.penalty(alone), rtol=1e-12)
    np.testing.assert_allclose(gradient[mask], reg.gradient(alone), rtol=1e-10, atol=1e-16)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    few, keep = features(7, 3), np.arange(7) % 3 > 0
    numeric = finite_differences(jax.jit(lambda h: vc.masked(reg, keep).penalty(h)), few)
    np.testing.assert_allclose(added(vc.masked(reg, keep), jnp.asarray(few)), numeric, rtol=1e-6, atol=1e-8)


@every_reg
def test_on_eight_devices_with_explicit_axes_it_is_the_same(reg, x64):
    h, mask = features(16, 5, 4), some(16, 5)
    mask[2:6] = False  # devices without a row that counts
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        put = NamedSharding(mesh, PartitionSpec("data"))
        split, split_mask = jax.device_put(h, put), jax.device_put(mask, put)
        gradient = jax.jit(lambda h, mask: added(vc.masked(reg, mask), h))(split, split_mask)
        penalty = jax.jit(lambda h, mask: vc.masked(reg, mask).penalty(h))(split, split_mask)
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(gradient[mask], reg.gradient(jnp.asarray(h[mask])), rtol=1e-10, atol=1e-16)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    np.testing.assert_allclose(penalty, reg.penalty(jnp.asarray(h[mask])), rtol=1e-12)


@every_reg
def test_inside_shard_map_it_is_the_whole_batchs(reg, x64):
    h, mask = features(16, 5, 4), some(16, 5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def gradient(h, mask):
        return jax.grad(lambda h: jax.lax.pmean(0.0 * vc.masked(reg, mask)(h).sum(), "data"))(h)

    split = PartitionSpec("data")
    found = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(split, split), out_specs=split))(h, mask)
    np.testing.assert_allclose(found[mask], reg.gradient(jnp.asarray(h[mask])), rtol=1e-10, atol=1e-16)


def test_a_mask_costs_no_second_all_reduce():
    h, mask = np.float32(features(16, 5, 4)), some(16, 5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        put = NamedSharding(mesh, PartitionSpec("data"))
        split, split_mask = jax.device_put(h, put), jax.device_put(mask, put)
        found = collectives(lambda h, mask: vc.masked(vc.VCReg(), mask).gradient(h), split, split_mask)
    assert found == Counter({"all-reduce": 1})


@pytest.mark.parametrize("scale", ["equation_4", "algorithm_1"])
def test_of_sampled_positions_those_count_that_the_mask_keeps(scale, x64, monkeypatch):
    monkeypatch.setattr(sampling, "ROWS_PER_FEATURE", 1)
    h, mask, weights = features(16, 6, 4), some(16, 6), {"alpha": 0.7, "beta": 0.3, "scale": scale}
    reg = vc.masked(vc.VCReg(**weights, sample=2), mask)
    positions = slice(0, 6, 2)  # in the middle: of 0 to 5 those from 5 % 2 // 2 on
    penalty, alone = reference.penalty, h[:, positions][mask[:, positions]]
    np.testing.assert_allclose(reg.penalty(jnp.asarray(h)), penalty(alone, **weights), rtol=1e-12)
    numeric = finite_differences(lambda rows: penalty(rows, **weights), alone)
    gradient = np.array(added(reg, jnp.asarray(h)))
    np.testing.assert_allclose(gradient[:, positions][mask[:, positions]], numeric, rtol=1e-6, atol=1e-9)
    gradient[:, positions][mask[:, positions]] = 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@every_reg
def test_what_comes_from_the_loss_passes_unchanged_by_masked_rows(reg):
    h, mask = jnp.asarray(features(6, 5, 4), jnp.bfloat16), some(6, 5)
    incoming = jnp.asarray(features(6, 5, 4), jnp.bfloat16)
    gradient = added(vc.masked(reg, mask), h, incoming)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(gradient)[~mask], np.float32(incoming)[~mask])
    change = np.float32(gradient)[mask] - np.float32(incoming)[mask]
    expected = np.float32(reg.gradient(h.astype(jnp.float32)[mask]))
    np.testing.assert_allclose(change, expected, atol=0.02 * np.abs(incoming).max())


def test_a_mask_of_whole_examples_and_one_of_ones_and_zeros(x64):
    h, reg = features(8, 5, 4), REGS["VCReg"]
    gradient = added(vc.masked(reg, np.array([1, 1, 0, 1, 0, 1, 1, 1])), jnp.asarray(h))
    rows = h[[0, 1, 3, 5, 6, 7]]
    np.testing.assert_allclose(gradient[jnp.array([0, 1, 3, 5, 6, 7])], reg.gradient(jnp.asarray(rows)), rtol=1e-10)


@pytest.mark.parametrize("kept", [0, 1])
@every_reg
def test_fewer_than_two_kept_rows_are_finite(reg, kept, x64):
    mask = np.arange(6) < kept
    masked = vc.masked(reg, mask)
    gradient = added(masked, jnp.asarray(features(6, 4)))
    assert np.isfinite(masked.penalty(jnp.asarray(features(6, 4))))
    if isinstance(reg, vc.WLDReg):
        assert np.isfinite(gradient).all()  # one row has differences between its features
    else:
        np.testing.assert_array_equal(gradient, 0.0)


@every_reg
@pytest.mark.parametrize("axis", [1, -3])
def test_on_axis_is_the_axis_moved(reg, axis, x64):
    h = features(3, 5, 2, 4)
    first = jnp.asarray(np.moveaxis(h, -1, 1))
    channels_first = vc.on_axis(reg, axis)
    np.testing.assert_array_equal(channels_first(first), first)
    expected = np.moveaxis(np.asarray(reg.gradient(jnp.asarray(h))), -1, 1)
    np.testing.assert_allclose(added(channels_first, first), expected, rtol=1e-12)
    np.testing.assert_allclose(channels_first.penalty(first), reg.penalty(jnp.asarray(h)), rtol=1e-12)
    mask = some(3, 5, 2)
    masked = added(vc.masked(channels_first, mask), first)
    expected = np.moveaxis(np.asarray(vc.masked(reg, mask).gradient(jnp.asarray(h))), -1, 1)
    np.testing.assert_allclose(masked, expected, rtol=1e-12)


def test_no_regularizer_stays_none():
    assert vc.on_axis(vc.identity, 1) is vc.identity
    assert vc.masked(vc.identity, np.ones(3, bool)) is vc.identity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda h: vc.masked(vc.VCReg(), np.ones((3, 5), bool))(h), r"shape \(3, 5\) does not fit .* such as \(4, 5\)"),
        (
            lambda h: vc.masked(vc.explicit(vc.VCReg()), np.ones(4, bool)),
            "masked takes a regularizer whose penalty takes keep",
        ),
        (lambda h: vc.on_axis(vc.VCReg(), 3)(h), r"on_axis\(3\) needs features with that axis, got shape \(4, 5, 2\)"),
        (lambda h: vc.on_axis(lambda h: h, 1), "a penalty and a gradient"),
    ],
)
def test_what_does_not_fit_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make(jnp.ones((4, 5, 2)))


# Time


@every_reg
def test_per_step_is_the_mean_of_every_steps_own(reg, x64):
    h = features(8, 3, 2, 4)  # batch, time, more positions
    steps = [jnp.asarray(h[:, t]) for t in range(3)]
    own = vc.over_time(reg, "per_step")
    np.testing.assert_allclose(own.penalty(jnp.asarray(h)), np.mean([reg.penalty(s) for s in steps]), rtol=1e-12)
    expected = np.stack([np.asarray(reg.gradient(s)) / 3 for s in steps], axis=1)
    np.testing.assert_allclose(added(own, jnp.asarray(h)), expected, rtol=1e-10, atol=1e-16)
    last = vc.over_time(reg, "per_step", axis=-2)
    expected = np.stack([np.asarray(reg.gradient(jnp.asarray(h[:, :, t]))) / 2 for t in range(2)], axis=2)
    np.testing.assert_allclose(added(last, jnp.asarray(h)), expected, rtol=1e-10, atol=1e-16)
    assert vc.over_time(reg, "pooled") is reg and vc.over_time(vc.identity, "per_step") is vc.identity


@every_reg
def test_steps_of_sequences_of_several_lengths_count_their_own_rows(reg, x64):
    h, lengths = features(8, 3, 4), np.array([3, 3, 3, 2, 2, 3, 1, 3])
    mask = np.arange(3)[None] < lengths[:, None]
    h[~mask] = np.nan
    own = vc.masked(vc.over_time(reg, "per_step"), mask)
    kept = [jnp.asarray(h[mask[:, t], t]) for t in range(3)]
    np.testing.assert_allclose(own.penalty(jnp.asarray(h)), np.mean([reg.penalty(k) for k in kept]), rtol=1e-12)
    gradient = np.asarray(added(own, jnp.asarray(h)))
    for t in range(3):
        np.testing.assert_allclose(gradient[mask[:, t], t], np.asarray(reg.gradient(kept[t])) / 3, rtol=1e-10)
    np.testing.assert_array_equal(gradient[~mask], 0.0)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_per_step_on_eight_devices_is_the_same_for_one_all_reduce(axis_type, x64):
    h, reg = features(16, 3, 4), vc.over_time(vc.VCReg(0.7, 0.3), "per_step")
    expected = added(reg, jnp.asarray(h))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        split = jax.device_put(h, NamedSharding(mesh, PartitionSpec("data")))
        np.testing.assert_allclose(jax.jit(lambda h: added(reg, h))(split), expected, rtol=1e-10, atol=1e-16)
        assert collectives(reg.gradient, split) == Counter({"all-reduce": 1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda h: vc.over_time(vc.VCReg(), "per_step", axis=2)(h), "axis=2 needs features with that axis before"),
        (lambda h: vc.over_time(lambda h: h, "per_step"), "over_time takes a regularizer with a penalty"),
    ],
)
def test_what_has_no_time_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make(jnp.ones((4, 5, 2)))
