"""Several hosts as one machine: how processes find each other, and what they must agree on.

A host is a process of the run: one a machine on TPUs, as a rule one a device on GPUs.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.data.pipeline import Split
from train.files import whole_files
from train.run.folder import as_json, claim, differences, software
from train.run.provenance import sources


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connects this process with the others of its run; must come before JAX looks for devices.

    Without arguments JAX is asked whether a TPU pod, Slurm, Open MPI or Kubernetes started this process as one of
    several, and nothing is done if not. `count=1` asks nobody.

    Args:
      coordinator: host:port on which the first process listens, for all the same.
      count: how many processes.
      index: which of them this one is, from 0.

    Raises:
      ValueError: for some of the arguments without the others, or which cannot be.
    """
    if count == 1 and coordinator is None and index is None:
        return
    given = (coordinator, count, index)
    if coordinator is not None and count is not None and index is not None:
        if not re.fullmatch(r".+:\d+", coordinator) or not 0 <= index < count:
            raise ValueError(f"Processes need host:port and 0 <= id < number, got {coordinator}, {index} of {count}.")
    elif given != (None, None, None):
        raise ValueError("--coordinator, --num-processes and --process-id go together, on every host.")
    if coordinator is not None and index == 0:
        _check_free(int(coordinator.rpartition(":")[2]))
    try:
        jax.distributed.initialize(coordinator, count, index)
    except ValueError as error:
        if str(error) != "coordinator_address should be defined.":  # JAX's way to say that nothing was found
            raise


def _check_free(port: int) -> None:
    """Raises a ValueError for a port on which another program listens: JAX would end with a segmentation fault."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"Port {port} of the coordinator cannot be listened on ({error}). Take another.") from None


@contextlib.contextmanager
def errors_end_at_once() -> Iterator[None]:
    """Of several hosts one with an error ends with status 1, and does not wait at the exit for others as JAX would.

    `ValueError` is left to the caller: what is wrong was found on all hosts.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc(limit=0 if isinstance(error, OSError | FloatingPointError) else None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def is_first() -> bool:
    """Whether this is the host that prints, and writes what is no checkpoint."""
    return jax.process_index() == 0


def first_says(value: bool) -> bool:
    """The first host's value, on every host: of a file, say, that others may see later."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def check_same(describe: Callable[[], Any]) -> Any:
    """What `describe` returns: called on the first host and then on the others, before work in which they would wait
    for each other.

    Raises:
      ValueError: on every host the same, if it raises ValueError or OSError on one, or does not return the same
        JSON on all.
    """
    if jax.process_count() == 1:
        return describe()
    found = _attempt(describe) if is_first() else {}
    multihost_utils.sync_global_devices("the first host writes what the others find")
    first, *others = everyones = _gather(found or _attempt(describe))
    if failed := [f"host {host}: {each['error']}" for host, each in enumerate(everyones) if "error" in each]:
        raise ValueError(" ".join(failed))
    for host, other in enumerate(others, start=1):
        if lines := differences(other["same"], first["same"]):
            raise ValueError(
                "All hosts of a run need the same config, code and data. "
                f"Of host {host} (there) and host 0 (here) differ: {'; '.join(lines.values())}."
            )
    return first["same"]


@contextlib.contextmanager
def claim_on_all(folder: Path, config: Any, checked: Callable[[], Any]) -> Iterator[None]:
    """Keep the folder to this run while the block lasts.

    First `checked` must find the config in order, and the same on all hosts. Raises as `check_same`.
    """
    found = check_same(checked)
    with contextlib.ExitStack() as ours:
        check_same(lambda: ours.enter_context(claim(folder, config, found["data"])))
        try:
            yield
        except OSError as error:
            if error.errno not in whole_files.NO_ROOM:
                raise
            raise OSError(
                f"{str(error).rstrip('.')}. What is whole in {folder} stays: make room, and the same command goes on "
                "from there."
            ) from error


def unfinished(
    folder: Path, arms: Iterable[str], seeds: Iterable[int], is_finished: Callable[[Path], bool]
) -> Iterator[tuple[str, int, Path]]:
    """Arm, seed and folder of each run whose folder the first host does not find finished, a seed's arms together."""
    for seed, arm in itertools.product(seeds, arms):
        directory = folder / arm / f"seed{seed}"
        if not first_says(is_first() and is_finished(directory)):
            yield arm, seed, directory


def description(config: Any, data: Sequence[Split]) -> dict[str, Any]:
    """What must be the same on all hosts: config, code, versions, and the data."""
    code, prints = {"sources": sources(), **software()["versions"]}, dict[str, str]()
    for split in data:  # of which one may come more than once, with other labels
        name, fingerprint = split.selection.name, split.selection.fingerprint()
        prints[name] = " ".join(dict.fromkeys([*prints.get(name, "").split(), fingerprint]))
    return {"config": as_json(config), "code": code, "data": prints}


def _attempt(describe: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"same": json.loads(json.dumps(describe()))}
    except (ValueError, OSError) as error:
        return {"error": str(error)}


def _gather(value: Any) -> list[Any]:
    """Every host's value, which JSON can hold."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes.tolist(), strict=True)]
