"""What a training run must have in common with the one that it goes on from."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from train.config import TrainConfig
from train.data.pipeline import Split
from train.run.folder import as_json, differences, is_free, is_weight, software
from vcreg_jax import Sites


def description(config: TrainConfig, sites: Sites, seed: int, mesh: Mesh, data: Split) -> dict[str, Any]:
    """What stands in every checkpoint beside the arrays: all that decides their bits."""
    return {
        "train": as_json(config),
        "sites": as_json(sites),
        "seed": seed,
        "mesh": dict(mesh.shape),
        "data": data.selection.fingerprint(),
        **software(),
    }


def check(step: int, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Warnings of a run that goes on at `step`: what is not as it was.

    Raises:
      ValueError: when it would not be the same run: another config, global batch, seed or data.
    """
    changes = {field: change for field, change in differences(saved, now).items() if not is_free(field)}
    surroundings = {field for field in changes if field[0] in _SURROUNDINGS}
    weights = {field for field in changes if is_weight(field)}
    for field in changes.keys() - surroundings - weights:
        why = _REASONS.get(".".join(field), "give another folder")
        raise ValueError(f"The checkpoint of step {step} is of another run ({changes[field]}): {why}.")
    warnings = [f"From step {step} on with another weight ({changes[field]})." for field in sorted(weights)]
    if surroundings:
        listed = "; ".join(changes[field] for field in sorted(surroundings))
        warnings.append(f"From step {step} on with the same images and draws, but perhaps not to the bit: {listed}.")
    return warnings


_REASONS = {
    "train.batch_size": "the order of the images goes by the global batch",
    "seed": "all random draws go by the seed",
    "data": "the images or their labels have changed, or an older version saved it",
}
_SURROUNDINGS = ("mesh", "hardware", "versions", "commit")
