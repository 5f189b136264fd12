"""A hash of an array's content that does not depend on how it is split over devices and hosts.

Every element becomes 64 bits, mixed from its own bits and its position in the whole array; the hash is their sum modulo
2^64. So parts of an array can be hashed where they are, and the sums added. The mixing is a bijection (the finalizer of
SplitMix64: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", 2014): a change of one element always
changes the hash, any other change but for chance 2^-64. Against accidents, not against forgers.
"""

import math
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

_BLOCK = 1 << 15  # elements at a time: what the mixing works on stays in the processor's cache
_GAMMA, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_ONES = 2**64 - 1


def content_hashes(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Every array's hash in hexadecimal digits, from the host copies of its shards; the same on every host.

    All hosts must call it together.
    """
    sums = [
        sum(_sum(shard.data, shard.index, array.shape) for shard in array.addressable_shards if shard.replica_id == 0)
        for array in arrays.values()
    ]
    return {name: f"{total & _ONES:016x}" for name, total in zip(arrays, _over_hosts(sums), strict=True)}


def differing(arrays: Mapping[str, jax.Array], hashes: Mapping[str, str]) -> list[str]:
    """The arrays of which some host holds other content than `hashes` say.

    All hosts must call it together. Where devices of a host hold the same part, one of them is looked at.
    """
    sums, counts = [], []
    for array in arrays.values():
        parts = {str(shard.index): shard for shard in array.addressable_shards}.values()
        sums.append(sum(_sum(shard.data, shard.index, array.shape) for shard in parts))
        counts.append(sum(shard.data.size for shard in parts))
    found = []
    for name, total, count in zip(arrays, _over_hosts(sums), _over_hosts(counts), strict=True):
        copies = count // max(arrays[name].size, 1)
        if (total - copies * int(hashes[name], 16)) & _ONES:
            found.append(name)
    return found


def _sum(part: jax.Array, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """The sum over the part of an array of `shape` that lies at `index`."""
    host = np.ascontiguousarray(np.asarray(part))
    bits = host.reshape(-1).view(f"u{host.dtype.itemsize}")
    starts = [place.start or 0 for place in index]
    whole = len(shape)  # from this axis on the part is all of the array
    while whole and host.shape[whole - 1] == shape[whole - 1]:
        whole -= 1
    whole = max(whole - 1, 0)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    run = math.prod(host.shape[whole:])  # elements that follow each other in the whole array, too
    rows = np.full(1, starts[whole] * strides[whole] if shape else 0, np.uint64)
    for axis in reversed(range(whole)):
        along = np.arange(starts[axis], starts[axis] + host.shape[axis], dtype=np.uint64) * np.uint64(strides[axis])
        rows = (along[:, None] + rows).reshape(-1)
    return sum(_mix(*block) for block in _blocks(bits.reshape(-1, run), rows)) if host.size else 0


def _blocks(bits: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Elements and their positions: `bits` has a row for each of `rows`, the positions at which they begin."""
    at_once = max(1, _BLOCK // bits.shape[1])
    for row in range(0, len(rows), at_once):
        for column in range(0, bits.shape[1], _BLOCK):
            block = bits[row : row + at_once, column : column + _BLOCK]
            columns = np.arange(column, column + block.shape[1], dtype=np.uint64)
            yield block, rows[row : row + at_once, None] + columns


def _mix(bits: np.ndarray, positions: np.ndarray) -> int:
    z = positions
    z += np.uint64(1)
    z *= _GAMMA
    z += bits
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return int(z.sum())


def _over_hosts(numbers: list[int]) -> list[int]:
    """Sums over all hosts, modulo 2^64."""
    if jax.process_count() == 1:
        return numbers
    words = np.array([[number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF] for number in numbers], np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(words)).astype(np.uint64)  # hosts, arrays, words
    totals = (gathered[..., 0] + (gathered[..., 1] << np.uint64(32))).sum(axis=0)
    return [int(total) for total in totals]
