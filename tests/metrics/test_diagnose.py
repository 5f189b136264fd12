import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vcreg_jax as vc


def _maps(seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(6, 6)) * np.linspace(0.1, 1.2, 6)
    return (rng.normal(size=(16, 3, 2, 6)) @ mixing + 4.0).astype(np.float32)


def _oracle(h, delta, eps):
    rows = h.reshape(-1, h.shape[-1]).astype(np.float64)
    c = np.cov(rows.T)
    off = c[~np.eye(len(c), dtype=bool)]
    s = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    p = s / s.sum()
    under = (np.sqrt(np.diag(c) + eps) < 1).mean()
    rank = np.exp(-(p * np.log(p)).sum())
    return under, np.sqrt(np.diag(c)).mean(), np.sqrt((off**2).mean()), (np.abs(off) > delta).mean(), rank


def test_a_diagnosis_is_what_numpy_finds_in_all_positions():
    h, expected = jnp.asarray(_maps()), _oracle(_maps(), 0.5, 1e-2)
    assert 0 < expected[0] < 1 and 0 < expected[3] < 1
    np.testing.assert_allclose(vc.diagnose(h, delta=0.5, eps=1e-2), expected, rtol=2e-5)
    assert vc.diagnose(h).clipped == 0


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_over_a_sharded_batch_it_is_the_whole_batchs(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    h = jax.device_put(_maps(), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda h: vc.diagnose(h, delta=0.5))(h)
    np.testing.assert_allclose(found, _oracle(_maps(), 0.5, 1e-4), rtol=2e-5)


@pytest.mark.parametrize("how", ["pmap", "vmap", "shard_map, checked", "shard_map, unchecked"])
def test_with_an_axis_name_it_is_that_of_all_devices(how):
    def look(h):
        return vc.diagnose(h, delta=0.5, axis_name="devices")

    if how in ("pmap", "vmap"):
        by_device = getattr(jax, how)(look, axis_name="devices")(_maps().reshape(8, 2, 3, 2, 6))
        for value, expected in zip(by_device, _oracle(_maps(), 0.5, 1e-4), strict=True):
            np.testing.assert_allclose(value, np.full(8, expected), rtol=2e-5)
        return
    mesh, split = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,)), PartitionSpec("devices")
    specs = {"mesh": mesh, "in_specs": split, "out_specs": PartitionSpec()}
    found = jax.jit(jax.shard_map(look, **specs, check_vma=how == "shard_map, checked"))(_maps())
    np.testing.assert_allclose(found, _oracle(_maps(), 0.5, 1e-4), rtol=2e-5)


def test_an_axis_name_that_is_not_bound_or_empty_is_refused():
    with pytest.raises(ValueError, match="axis_name='devices' is not bound where statistics over it are asked for"):
        vc.diagnose(jnp.asarray(_maps()), axis_name="devices")
    with pytest.raises(ValueError, match=r"diagnose needs axis_name to be a string, .* got \(\)"):
        vc.diagnose(jnp.asarray(_maps()), axis_name=())


def test_collapsed_features_have_rank_one_and_no_unit_variance():
    line = jnp.outer(jnp.linspace(-1.0, 1.0, 512), 0.1 * jnp.cos(jnp.arange(256.0))) + 3.0
    assert np.isclose(vc.diagnose(line).effective_rank, 1.0, rtol=1e-3)
    assert vc.diagnose(line).under_unit_std == 1.0
    assert vc.diagnose(jnp.full((8, 3), 2.0)).effective_rank == 1.0


def test_what_has_no_covariance_is_refused():
    for h in (jnp.ones((1, 4)), jnp.ones(4)):
        with pytest.raises(ValueError, match="at least two samples, got"):
            vc.diagnose(h)
