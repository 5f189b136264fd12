import functools

import jax
import numpy as np
import optax
import pytest

import vcreg_jax as vc
from tests.tiny_network import TWO_STAGES
from train.benchmarks import preflight
from train.config import DataConfig, MeshConfig, ModelConfig
from train.data import pipeline
from train.trainer import mesh as meshes
from train.trainer.model import Architecture, create_state, structure
from train.trainer.objective import Classification
from train.trainer.step import Normalize, make_train_step

DATA = DataConfig("synthetic", "label", (0.5,), (0.25,), channels=1, synthetic_size=8, synthetic_classes=2)
SITES = vc.Sites(block=vc.VCReg(alpha=2.0, beta=5.0))
OPTIMIZER = optax.sgd(0.02, momentum=0.9)


@functools.cache
def twenty_steps(data, fsdp):
    """The losses, and the bytes of parameters and momentum that each device holds afterwards."""
    mesh = meshes.make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
    architecture = Architecture(ModelConfig(TWO_STAGES), 2, (8, 8, 1), SITES)
    state = create_state(architecture, OPTIMIZER, mesh, seed=0)
    train_step = make_train_step(
        structure(architecture)[0], OPTIMIZER, Normalize(DATA.mean, DATA.std), Classification(0.1), mesh
    )
    batches, losses = pipeline.load(DATA, "train").train_batches(16, 0, 0), []
    with jax.set_mesh(mesh):
        for _ in range(20):
            state, metrics = train_step(state, meshes.to_devices(next(batches), mesh), 0)
            losses.append(float(metrics["loss"]))
    held = dict.fromkeys(mesh.devices.flat, 0)
    for leaf in jax.tree.leaves((state["params"], state["opt_state"])):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    leaves = [(leaf.size, leaf.nbytes) for leaf in jax.tree.leaves((state["params"], state["opt_state"]))]
    return losses, list(held.values()), leaves


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2), (1, 8)])
@pytest.mark.usefixtures("smallest")
def test_twenty_sgd_steps_have_the_losses_of_one_device_and_every_device_holds_its_share(data, fsdp):
    alone, (whole,), leaves = twenty_steps(1, 1)
    losses, held, _ = twenty_steps(data, fsdp)
    print(f"{data} x {fsdp}: {held} of {whole} bytes; losses differ by {np.abs(np.subtract(losses, alone)).max():.1e}")
    assert alone[-1] < alone[0] and len(set(alone)) == 20
    np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-5)
    # Every array of this network that is not small has an axis that divides by eight.
    small = sum(size for count, size in leaves if count < 4096)
    assert small < whole / 5
    assert held == [small + (whole - small) // fsdp] * 8


@pytest.mark.parametrize(
    ("shape", "held"), [((3, 64, 128), (3, 64, 32)), ((512, 64), (128, 64)), ((4095,), (4095,)), ((81, 81), (81, 81))]
)
def test_the_largest_axis_that_divides_is_split_and_what_is_small_is_whole(shape, held):
    mesh = meshes.make_mesh(MeshConfig(2, 4))
    (sharding,) = meshes.state_shardings([jax.ShapeDtypeStruct(shape, "float32")], mesh)
    assert sharding.shard_shape(shape) == held


@pytest.mark.parametrize("fsdp", [1, 4])
def test_on_a_tpu_pod_a_hosts_rows_are_those_of_its_chips_wherever_they_stand(fsdp):
    mesh = meshes.make_mesh(MeshConfig(fsdp=fsdp), preflight.topology_devices("v5e:4x4"))
    owners = np.repeat([device.process_index for device in mesh.devices.flat], 2)
    rows = [meshes.host_rows(mesh, 32, host) for host in range(4)]
    for host in range(4):
        assert rows[host].tolist() == np.flatnonzero(owners == host).tolist() and len(rows[host]) == 8
    assert any(np.diff(its).max() > 1 for its in rows)  # which is why this is asked for
