import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.checkpoint import CheckpointCorruptError, Checkpoints


def _state(seed=0, width=16):
    kernel = jax.random.normal(jax.random.key(seed), (8, width))
    params = {"layers": {0: {"kernel": kernel}}, "bias": jnp.full((width,), -0.0)}
    return {"step": jnp.int32(7), "params": params, "opt_state": optax.adamw(1e-3).init(params)}


def _bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_state_comes_back_bit_for_bit_with_its_structure(tmp_path):
    state = _state()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        restored = checkpoints.restore(7, like=_state(seed=1))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert _bits(restored) == _bits(state)


def test_a_state_is_restored_onto_another_mesh(tmp_path):
    state = _state()
    devices = np.array(jax.devices())
    with Checkpoints(tmp_path) as checkpoints:
        spread = jax.device_put(state["params"], NamedSharding(Mesh(devices, ("fsdp",)), PartitionSpec()))
        checkpoints.save(1, spread)
    sharding = NamedSharding(Mesh(devices[:4], ("fsdp",)), PartitionSpec(None, "fsdp"))
    like = jax.device_put(_state(seed=1)["params"], NamedSharding(Mesh(devices[:4], ("fsdp",)), PartitionSpec()))
    like["layers"][0]["kernel"] = jax.device_put(like["layers"][0]["kernel"], sharding)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, like=like)
    assert _bits(restored) == _bits(state["params"])
    assert restored["layers"][0]["kernel"].sharding == sharding


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_another_model_or_optimizer_is_refused_with_every_difference_listed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state()["params"])
        other = {"layers": {0: {"kernel": jnp.zeros((8, 3))}}, "scale": jnp.zeros(16)}
        with pytest.raises(ValueError, match="of another model or optimizer") as refused:
            checkpoints.restore(1, like=other)
    message = str(refused.value)
    assert "! layers/0/kernel: float32[8, 16] is saved, float32[8, 3] is wanted" in message
    assert "- bias: float32[16] is saved, not wanted" in message
    assert "+ scale: float32[16] is wanted, not saved" in message


def _array_files(folder):
    """The files that hold array data, largest first."""
    files = [path for path in (folder / "1" / "state").rglob("*") if path.is_file() and "/d/" in str(path)]
    return sorted(files, key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("position", [0.1, 0.35, 0.5, 0.65, 0.9])
def test_a_flipped_bit_in_the_arrays_is_noticed(tmp_path, position):
    state = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
    with Checkpoints(tmp_path / "good") as checkpoints:
        checkpoints.save(1, state)
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    file = _array_files(tmp_path / "bad")[0]
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= 0b100
    file.write_bytes(content)
    with Checkpoints(tmp_path / "good") as checkpoints:
        assert _bits(checkpoints.restore(1, like=state)) == _bits(state)
    with Checkpoints(tmp_path / "bad") as checkpoints, pytest.raises(CheckpointCorruptError, match="Checkpoint 1"):
        checkpoints.restore(1, like=state)


def test_a_truncated_file_is_one_line(tmp_path):
    state = {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    file = _array_files(tmp_path)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    unreadable = pytest.raises(CheckpointCorruptError, match="Checkpoint 1 cannot be read")
    with Checkpoints(tmp_path) as checkpoints, unreadable as error:
        checkpoints.restore(1, like=state)
    assert "\n" not in str(error.value)
