"""The config of a run folder, from its `config.json` back to the types of which it was made."""

import dataclasses
from pathlib import Path
from typing import Any

import vcreg_jax as vc
from train import augment, config
from train.files import json_files

_WITHOUT_NETWORKS = ("Grid", "TwoMoons")


def load(folder: Path) -> config.Experiment:
    """What `train.run.folder.claim` wrote into `folder`.

    Raises:
      ValueError: when there is none, when it was written by a version with other fields, or is no run of networks.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: give the folder of a run, such as runs/digits.")
    saved = json_files.read(path)
    if saved.get("class") in _WITHOUT_NETWORKS:
        raise ValueError(f"{path} is of a {saved['class']}. Of an Experiment alone each network is kept.")
    found = _revive(saved, path)
    if not isinstance(found, config.Experiment):
        raise ValueError(f"{path} is of a {type(found).__name__}. Of an Experiment alone each network is kept.")
    return found


def _revive(value: Any, path: Path) -> Any:
    if isinstance(value, list):
        return tuple(_revive(item, path) for item in value)
    if value == "identity":
        return vc.identity
    if not isinstance(value, dict):
        return value
    fields = {key: _revive(item, path) for key, item in value.items()}
    if "class" not in fields:
        return fields
    name = str(fields.pop("class"))
    made_of = next((vars(module)[name] for module in (config, augment, vc) if name in vars(module)), None)
    if not (isinstance(made_of, type) and dataclasses.is_dataclass(made_of)):
        raise ValueError(f"{path} holds a {name}, which this version does not know.")
    try:
        return made_of(**fields)
    except TypeError as error:
        raise ValueError(f"{path} was written by a version whose {name} has other fields: {error}.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
