"""The folder of a run: whose it is, and how it was made."""

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from train.provenance import commit, hardware


def claim(folder: Path, config: Any) -> None:
    """Writes `config.json` into the folder.

    Raises:
      ValueError: when another config has made it, saying where they differ.
    """
    path, described = folder / "config.json", as_json(config)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, described)
        return
    saved = json.loads(path.read_text())
    # More seeds may be added to a finished run, and what is said about it may change.
    free = {"seeds", "title", "paper", "notes"}
    changed = [line for line in _differences(saved, described) if line.split(":")[0].split(".")[0] not in free]
    if changed:
        raise ValueError(
            f"{folder} holds a run of another config ({'; '.join(changed)}). Give another --name, or delete the folder."
        )


def _differences(saved: Any, wanted: Any, path: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = sorted(saved.keys() | wanted.keys())
        return [line for key in keys for line in _differences(saved.get(key), wanted.get(key), f"{path}.{key}")]
    return [] if saved == wanted else [f"{path.lstrip('.')}: {saved!r} there, {wanted!r} here"]


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
    return {
        "command": command,
        "hardware": hardware(),
        "commit": commit(),
        "versions": versions(),
        "config": as_json(config),
        "wall_seconds": seconds,
    }


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers may depend on."""
    return {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")}


def write_json(path: Path, value: Any) -> None:
    """Writes the file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)
