"""Devices in a mesh of two axes, `data` and `fsdp`, and how batches and states lie on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.config import MeshConfig

BATCH = PartitionSpec(("data", "fsdp"))
SMALLEST_TO_SPLIT = 4096  # elements: below, gathering costs more than the memory is worth


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """`devices`, or else all of all hosts, as a (data, fsdp) mesh of auto axes.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    data = count // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != count:
        raise ValueError(
            f"The mesh needs data * fsdp = {count} devices, got data={config.data}, fsdp={config.fsdp}. "
            "Use data=-1 to take what fsdp leaves."
        )
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, config.fsdp), ("data", "fsdp"), axis_types=auto, devices=devices)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError, naming the nearest sizes that fit, when the batch does not divide over the devices."""
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        fitting = " or ".join(str(size) for size in (below, below + devices) if size > 0)
        raise ValueError(f"batch_size must divide by the {devices} devices, got {batch_size}. Nearest: {fitting}.")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, BATCH)


def host_rows(mesh: Mesh, batch_size: int, host: int | None = None) -> np.ndarray:
    """Which rows of a batch lie on the devices of a host (None: this one), in ascending order.

    A mesh follows the network between the chips, so a host's rows need not lie side by side.
    """
    host = jax.process_index() if host is None else host
    places = batch_sharding(mesh).devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.sort(np.concatenate([rows[place] for device, place in places.items() if device.process_index == host]))


def to_devices(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch as global arrays split over the mesh, of which every host gives its `host_rows`."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """For every array its largest axis that divides, split over `fsdp`; whole if none does, or if it is small."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _over_fsdp(leaf.shape, mesh.shape["fsdp"])), state)


def _over_fsdp(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible or math.prod(shape) < SMALLEST_TO_SPLIT:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * largest, "fsdp")
