"""Checkpoints: Orbax's asynchronous, atomic directories, with content hashes of our own.

A state is saved as a flat dict `a/b/c -> array` and restored onto any mesh. Orbax restores a flipped bit without a
word; here every array's hash is kept beside it and compared.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class CheckpointCorruptError(RuntimeError):
    """What was read is not what was saved."""


class Checkpoints:
    """The checkpoints of one run, by step; a context manager that waits for pending saves."""

    def __init__(self, directory: Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "hashes": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts to save `state`; returns once its arrays may be donated."""
        if step in self._manager.all_steps():
            return
        arrays = _flat(state)
        hashes = {path: _hash(array) for path, array in arrays.items() if array.is_fully_addressable}
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), hashes=ocp.args.JsonSave(hashes))
        self._manager.save(step, args=items)

    def restore(self, step: int, like: Any) -> Any:
        """The state of `step`, with the structure and the shardings of `like` (arrays or abstract arrays).

        Raises:
          ValueError: when the checkpoint holds other names, shapes or dtypes than `like`.
          CheckpointCorruptError: when an array cannot be read, or is not the one that was saved.
        """
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for path, leaf in _flat(like).items()
        }
        self._manager.wait_until_finished()
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), hashes=ocp.args.JsonRestore())
        try:
            saved = self._manager.item_metadata(step)["state"]
            _check_structure(step, saved, wanted)
            restored = self._manager.restore(step, args=items)
        except _OtherStructureError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types, some of them `Exception` itself
            raise CheckpointCorruptError(f"Checkpoint {step} cannot be read: {_first_line(error)}") from error
        arrays, hashes = restored["state"], restored["hashes"]
        changed = [path for path in hashes if _hash(arrays[path]) != hashes[path]]
        if changed:
            raise CheckpointCorruptError(
                f"Checkpoint {step} holds other bits than were saved in: {', '.join(changed)}."
            )
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[path] for path in wanted])


class _OtherStructureError(ValueError):
    """A checkpoint of another model or optimizer."""


def _check_structure(step: int, saved: Any, wanted: dict[str, Any]) -> None:
    described = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in saved.items()}
    expected = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in wanted.items()}
    lines = [f"- {path}: {described[path]} is saved, not wanted" for path in described.keys() - expected.keys()]
    lines += [f"+ {path}: {expected[path]} is wanted, not saved" for path in expected.keys() - described.keys()]
    for path in described.keys() & expected.keys():
        if described[path] != expected[path]:
            lines.append(f"! {path}: {described[path]} is saved, {expected[path]} is wanted")
    if lines:
        differences = "\n".join(sorted(lines))
        raise _OtherStructureError(f"Checkpoint {step} is of another model or optimizer:\n{differences}")


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _hash(array: jax.Array) -> str:
    host = np.asarray(array)
    header = json.dumps([str(host.dtype), host.shape]).encode()
    return hashlib.sha256(header + np.ascontiguousarray(host).tobytes()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
