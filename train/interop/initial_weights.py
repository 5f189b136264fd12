"""Weights from elsewhere for a network of ours to start from, or to be probed as it is."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from train.interop import convert
from train.trainer.model import Architecture
from train.trainer.step import split
from vcreg_jax import torch_weights

Weights = tuple[dict, dict]  # parameters and batch statistics as nested dicts, perhaps without the classifier's


def load(source: Path, architecture: Architecture, head: bool) -> Weights:
    """The weights in `source` for a network of this architecture, every one of them or none.

    Args:
      source: a `.pth`, `.th`, `.pt` or `.safetensors` file, or a run's folder of one arm and seed.
      architecture: of the network that takes them.
      head: with those of the classifier; otherwise the file may have another one, or none.

    Raises:
      ValueError: for weights of another network, listing what does not fit.
    """
    if source.is_dir():
        checkpoints = source / "checkpoints" if (source / "checkpoints").is_dir() else source
        name, found = convert.load_checkpoint(checkpoints)
        if name != architecture.config.name:
            raise ValueError(f"{source} has a {name}, not a {architecture.config.name}.")
        tensors = torch_weights.export(found)
    else:
        tensors = convert.read_file(source)
    model: Any = nnx.eval_shape(lambda: architecture.create(0))
    try:
        torch_weights.load(model, tensors, head=head)
    except ValueError as error:
        raise ValueError(f"{source} does not fit {architecture.config.name}: {error}") from error
    _, params, batch_stats = split(model)
    return _there(params), _there(batch_stats)


def _there(values: dict) -> dict:
    """Without what has got no value."""
    kept = {key: _there(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {
        key: value
        for key, value in kept.items()
        if not isinstance(value, jax.ShapeDtypeStruct) and not _is_empty(value)
    }


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and not value
