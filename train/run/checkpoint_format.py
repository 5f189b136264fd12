"""One checkpoint on disk: arrays that Orbax wrote, and beside them what they are and where they come from.

<step>/state/          Orbax's files: a flat dict, a/b/c -> array
<step>/about/metadata  JSON: every array's shape, dtype and hash, the run that made them, and a hash of that text itself

Orbax restores a flipped bit without a word; what is read here is what was saved, or an error.
"""

import gc
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from train.files import json_files
from train.files.content_hash import content_hashes, differing
from train.files.json_files import text_hash
from train.run import orbax_tracebacks

Arrays = Mapping[str, Any]  # by path; arrays, or shapes and dtypes with shardings


class CheckpointCorruptError(OSError):
    """What was read is not what was saved."""


def describe(arrays: Mapping[str, jax.Array], validation: Mapping[str, float], run: Mapping[str, Any]) -> dict:
    """What stands beside the arrays; `run` is whatever JSON can hold. All hosts must call it together."""
    hashes = content_hashes(arrays)
    about = {
        "arrays": {path: {"is": _kind(array), "hash": hashes[path]} for path, array in arrays.items()},
        "validation": dict(validation),
        "run": dict(run),
    }
    return about | {"sha256": text_hash(about)}


def read_about(folder: Path) -> dict[str, Any]:
    """What stands beside the arrays in `folder`, a checkpoint of one step.

    Raises:
      CheckpointCorruptError: when it cannot be read, or is not what was written.
    """
    file = folder / "about" / "metadata"
    try:
        about = json.loads(file.read_text())
        saved_hash = about.pop("sha256")
        if saved_hash == text_hash(about):
            return about
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointCorruptError(f"{file} cannot be read: {first_line(error)}.") from error
    raise CheckpointCorruptError(f"{file} is not what was written.")


def read_arrays(folder: Path, like: Arrays | None = None) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The arrays in `folder`, with the shardings of `like`, and what stands beside them; on every host, or on none.

    Without `like` all that was saved, on this process's first device.

    Raises:
      ValueError: when the checkpoint holds other names, shapes or dtypes than `like`, with every difference.
      CheckpointCorruptError: when on some host an array cannot be read, or is not the one that was saved.
    """
    arrays, about, reason = {}, {}, None
    try:
        about = read_about(folder)
        wanted = _as_saved(about["arrays"]) if like is None else like
        _check_structure(folder, about["arrays"], wanted)
        arrays = _read_by_orbax(folder / "state", wanted)
    except CheckpointCorruptError as error:
        reason = str(error)
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(reason is not None)).any():
        reason = reason or f"{folder} cannot be read on another host."
    if reason:
        raise CheckpointCorruptError(reason)
    changed = differing(arrays, {path: saved["hash"] for path, saved in about["arrays"].items()})
    if changed:
        raise CheckpointCorruptError(f"{folder} holds other bits than were saved in: {', '.join(changed)}.")
    return arrays, about


def read_state(folder: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """A tree with the structure and the shardings of `like`, and what stands beside it; raises as `read_arrays`."""
    wanted = by_path(like)
    arrays, about = read_arrays(folder, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted]), about


def step_to_use(checkpoints: Path) -> int | None:
    """The step with whose weights the run was tested, or while it is not, the newest; None where none is kept."""
    steps = {int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()}
    result = checkpoints.parent / "result.json"
    tested = json_files.read(result).get("step") if result.exists() else None
    return tested if tested in steps else max(steps, default=None)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by names such as `params/head/bias`, in their order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def first_line(error: BaseException) -> str:
    """An error in one line, without what TensorStore was asked for."""
    text = re.split(r" \[tensorstore_spec| \[source locations", str(error).strip())[0]
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _check_structure(folder: Path, saved: Mapping[str, Any], wanted: Arrays) -> None:
    there = {path: array["is"] for path, array in saved.items()}
    here = {path: _kind(array) for path, array in wanted.items()}
    lines = [f"- {path}: {there[path]} is saved, not wanted" for path in there.keys() - here.keys()]
    lines += [f"+ {path}: {here[path]} is wanted, not saved" for path in here.keys() - there.keys()]
    for path in there.keys() & here.keys():
        if there[path] != here[path]:
            lines.append(f"! {path}: {there[path]} is saved, {here[path]} is wanted")
    if lines:
        differences = "".join(f"\n  {line}" for line in sorted(lines))
        raise ValueError(f"{folder} is a checkpoint of another model or optimizer:{differences}")


def _kind(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _as_saved(saved: Mapping[str, Any]) -> Arrays:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    kinds = {path: array["is"].rstrip("]").split("[") for path, array in saved.items()}
    return {
        path: jax.ShapeDtypeStruct(tuple(int(size) for size in shape.split(",") if size), dtype, sharding=device)
        for path, (dtype, shape) in kinds.items()
    }


def _read_by_orbax(folder: Any, wanted: Arrays) -> dict[str, jax.Array]:
    shapes = {path: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for path, a in wanted.items()}
    orbax_tracebacks.drop()
    with warnings.catch_warnings(action="ignore"):
        try:
            return ocp.StandardCheckpointHandler().restore(folder.absolute(), args=ocp.args.StandardRestore(shapes))
        except Exception as error:  # Orbax and TensorStore raise many types, some of them `Exception` itself
            reason = f"{folder} cannot be read: {first_line(error.__cause__ or error)}."
        gc.collect()  # what is left of the other arrays
    raise CheckpointCorruptError(reason)
