"""The folder of a run: who writes to it, of which config it is, and how it was made."""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from train.files import arrays, json_files
from train.run.provenance import commit, hardware

Field = tuple[str, ...]  # where a value stands in a config, key by key: a key may hold a dot

# What is said about a run, where it runs and how it is stored. More seeds may be added to a finished run.
_FREE = ("seeds", "title", "paper", "notes", "runs_directory", "train.mesh", "train.checkpoints", "train.save_every")
ARRAYS = "features.npz"  # beside `result.json`: what a report draws
ARRAYS_HASH = "features_sha256"  # what `result.json` knows of it
_WRITTEN = (
    "config",
    "data",
    "experiment",
    "grid",
    "tuning",
    "result",
    "analysis",
    "figure1",
)
_WRITTEN = tuple(f"{name}.json" for name in _WRITTEN)
_FREE += ("train.hang_seconds", "train.tensorboard")
_FREE += tuple(f"train.data.{name}" for name in ("directory", "reader_threads", "reader_processes"))


@contextlib.contextmanager
def claim(folder: Path, config: Any, data: Mapping[str, str] | None = None) -> Iterator[None]:
    """Keeps the folder to this process, with the config in `config.json` and the data's fingerprints in `data.json`.

    Weights of regularizers may change as long as no run of their arm is finished, with a line on stderr that says so.
    Targets may be left out, and others added: networks stay what they are, unless targets choose among candidates.

    Raises:
      ValueError: when another process writes to it, or another config or other data have made it, saying where they
        differ.
    """
    if jax.process_index() != 0:
        yield  # the first host speaks for all
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        _check_config(folder, as_json(config))
        _check_data(folder / "data.json", data or {})
        yield


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """The system lets go of the lock when its holder ends, however that happens."""
    path = folder / "lock"
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text().strip() or "another process"
        raise ValueError(f"{folder} is in use by {holder}. Wait for its end, or give another --name.") from None
    except OSError as error:
        print(f"{folder} cannot be locked ({error}): let no other process write to it.", file=sys.stderr)
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        yield
    finally:
        lock.release()


def is_in_use(folder: Path) -> bool:
    """Whether a process writes to the folder; where files cannot be locked it is not known, and False."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _check_config(folder: Path, described: Any) -> None:
    path = folder / "config.json"
    if not path.exists():
        return write_json(path, described)
    saved = json_files.read(path)
    changes = {field: change for field, change in differences(saved, described).items() if not is_free(field)}
    if not _searches(saved):
        changes = {field: change for field, change in changes.items() if not _is_whole_target(field)}
        described = described | {"targets": saved.get("targets", {}) | described.get("targets", {})}
    weights = {field for field in changes if is_weight(field) and not _is_finished(folder, field[1])}
    if refused := [change for field, change in changes.items() if field not in weights]:
        raise ValueError(
            f"{folder} holds a run of another config ({'; '.join(refused)}). Give another --name, or delete the folder."
        )
    for field in sorted(weights):
        print(f"warning: {folder} goes on with another weight ({changes[field]}).", file=sys.stderr)
    write_json(path, described)


def _check_data(path: Path, data: Mapping[str, str]) -> None:
    """Of splits that were used before, the images and labels must be those that were used then."""
    saved = json_files.read(path) if path.exists() else {}
    if other := [name for name in data if saved.get(name, data[name]) != data[name]]:
        raise ValueError(
            f"{path.parent} holds runs on other images or labels of {', '.join(other)}. Put back the data that they "
            "were trained on, or give another --name."
        )
    if data.keys() - saved.keys():
        write_json(path, saved | dict(data))


def _is_whole_target(field: Field) -> bool:
    return len(field) == 2 and field[0] == "targets"


def _searches(described: Any) -> bool:
    """Whether targets choose among candidates, or it is no experiment."""
    arms = described.get("arms", {}) if described.get("class") == "Experiment" else {"": [None, None]}
    return any(isinstance(own, list) and len(own) > 1 for own in arms.values())


def _is_finished(folder: Path, arm: str) -> bool:
    return any((folder / arm).glob("seed*/result.json"))


def is_free(field: Field) -> bool:
    """Whether a field of a config may change while a run goes on."""
    return re.sub("^search[.]", "train.", ".".join(field)).startswith(_FREE)  # a grid has a recipe for its search, too


def is_weight(field: Field) -> bool:
    """Whether a field of a config is a weight of a regularizer."""
    return field[-1] in ("alpha", "beta")


def differences(saved: Any, wanted: Any, path: Field = ()) -> dict[Field, str]:
    """Where two descriptions differ: by field, how. What an earlier version has not saved is empty, as it was then."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        found = {}
        for key in sorted(saved.keys() | wanted.keys()):
            if key in saved or wanted[key]:
                found |= differences(saved.get(key), wanted.get(key), (*path, key))
        return found
    return {} if saved == wanted else {path: f"{'.'.join(path)}: {saved!r} there, {wanted!r} here"}


def as_json(config: Any) -> Any:
    """A config as what JSON can hold: every part with its class, a function by its name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field.name: as_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"class": type(config).__name__, **values}
    if isinstance(config, dict):
        return {key: as_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_json(value) for value in config]
    return config.__name__ if callable(config) else config


def provenance(config: Any, command: str, seconds: float) -> dict[str, Any]:
    """How a run was made: command, hardware, commit, versions, config, time."""
    return {"command": command, **software(), "config": as_json(config), "wall_seconds": seconds}


def software() -> dict[str, Any]:
    """What runs and on what: hardware, commit, versions."""
    return {"hardware": hardware(), "commit": commit(), "versions": versions()}


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers may depend on."""
    return {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")}


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all; of several hosts the first does."""
    if jax.process_index() != 0:
        return
    json_files.write(path, value)


def check(folder: Path) -> None:
    """Compares what a run folder's files say with the hashes that they have.

    Raises:
      ValueError: naming the first that is not what was written.
    """
    for path in sorted(folder.rglob("*.json")):
        if path.name in _WRITTEN:
            found = json_files.read(path)
            _check_accuracies(path, found)
            _check_arrays(path.with_name(ARRAYS), found if isinstance(found, dict) else {})
    for path in sorted(folder.rglob("*.jsonl")):
        json_files.read_lines(path.read_text(encoding="utf-8", errors="replace"), path)


def _check_accuracies(path: Path, found: Any) -> None:
    """Raises a ValueError for a result's accuracy that is no fraction, at any depth."""
    if path.name != "result.json" or not isinstance(found, list | dict):
        return
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if str(name).endswith("accuracy") and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"{path}: {name} must lie in 0..1, got {value}. Delete the file, and it is made anew.")
        _check_accuracies(path, value)


def _check_arrays(path: Path, result: dict[str, Any]) -> None:
    mend = "Delete the result.json beside it, and both are made anew."
    known = result.get(ARRAYS_HASH)
    if known and (not path.is_file() or file_hash(path) != known):
        raise ValueError(f"{path} is not what was written. {mend}")
    if not known and path.is_file():
        try:
            arrays.read(path)
        except ValueError as error:
            raise ValueError(f"{error}. {mend}") from error


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
