import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.files.content_hash import content_hashes, differing

MASK = 2**64 - 1


def written_out(array):
    """SplitMix64's finalizer on Python's integers, element by element."""
    host = np.asarray(array).reshape(-1)
    total = 0
    for position, bits in enumerate(host.view(f"u{host.itemsize}").tolist()):
        z = (bits + (position + 1) * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        total += z ^ (z >> 31)
    return f"{total & MASK:016x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
@pytest.mark.parametrize("shape", [(), (16,), (8, 16), (8, 4, 24), (3, 3, 8, 16), (0, 4)])
def test_the_hash_is_the_written_out_one_however_the_array_is_split(shape, dtype):
    array = jnp.asarray(np.random.default_rng(0).normal(scale=50, size=shape)).astype(dtype)
    expected = written_out(array)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    for spec in (
        P(),
        P("fsdp"),
        P("data", "fsdp"),
        P(None, "fsdp"),
        P(None, None, "data"),
        P(None, None, None, "fsdp"),
    ):
        fits = len(spec) <= len(shape) and all(n % 4 == 0 for n, name in zip(shape, spec, strict=False) if name)
        if fits:
            arrays = {"a": jax.device_put(array, NamedSharding(mesh, spec))}
            assert content_hashes(arrays) == {"a": expected}
            assert differing(arrays, {"a": expected}) == []


def test_longer_runs_than_a_block_are_hashed_whole():
    array = jnp.arange(3 * 70_000, dtype=jnp.float32).reshape(3, 70_000)
    mesh = Mesh(np.array(jax.devices())[:2], ("fsdp",))
    split = jax.device_put(array, NamedSharding(mesh, P(None, "fsdp")))
    assert content_hashes({"a": array}) == content_hashes({"a": split}) == {"a": written_out(array)}


@pytest.mark.parametrize("bit", [0, 13, 31])
def test_one_bit_anywhere_changes_the_hash(bit):
    array = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    hashes = content_hashes({"a": jnp.asarray(array)})
    for position in range(array.size):
        changed = array.copy()
        changed.reshape(-1).view(np.uint32)[position] ^= np.uint32(1 << bit)
        assert differing({"a": jnp.asarray(changed)}, hashes) == ["a"]
