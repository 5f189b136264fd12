"""`python -m train convert`: weights between PyTorch's files, safetensors and our checkpoints, and no pickle ever.

Whatever is read goes through our model of the name given: every tensor must have its place and its shape there, and
every place its tensor, before anything is written.
"""

import importlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import vcreg_jax as vc
from train.checkpoint import Checkpoints
from vcreg_jax import torch_weights
from vcreg_jax.models.torch_names import NAMINGS

TORCH_SUFFIXES, SUFFIXES = (".pth", ".pt", ".th"), (".pth", ".pt", ".th", ".safetensors")
_PREFIX = "vcreg_jax."  # of our entries in a file's metadata


def convert(source: Path, target: Path, name: str | None = None, num_classes: int | None = None) -> str:
    """Writes the weights in `source` to `target` and says what was done.

    Args:
      source: a `.pth`, `.pt`, `.th` or `.safetensors` file, or the `checkpoints` folder of a finished run.
      target: a file of one of these suffixes. Tensors keep the names that they have in `source`; those of a
        checkpoint get torchvision's, or akamaster's for a CIFAR ResNet.
      name: which model it is, one of `vc.models.names()`; by default what `source` says itself, which our own
        `.safetensors` files and runs do.
      num_classes: of the classifier; by default as many as it has.

    Raises:
      ValueError: for anything that is not, in full, the weights of that model.
    """
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target}: what is written ends in {', '.join(SUFFIXES)}, not in {target.suffix!r}.")
    tensors, said = _read(source)
    name = name or said.get("model")
    if name is None:
        raise ValueError(f"{source} does not say which model it is: give --model, one of {', '.join(vc.models.names())}.")
    if source.is_dir():
        model = _abstract(name, _options_of_checkpoint(tensors, said))
        _fill(model, tensors, source)
        exported = torch_weights.export(model)
    else:
        options, naming = _options(name, tensors)
        model = _abstract(name, options)
        _check_classes(source, options["num_classes"], num_classes)
        torch_weights.load(model, tensors)
        exported = torch_weights.export(model, naming) | _counters(tensors)
    classes = _head_width(model)
    _check_classes(source, classes, num_classes)
    metadata = {"model": name, "num_classes": str(classes), "source": source.name, "version": _version()}
    _write(target, exported, {_PREFIX + key: value for key, value in metadata.items()})
    count = sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return f"{name}, {classes} classes, {count:,} parameters in {len(exported)} tensors: {target}"


def _read(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Names to tensors, and what the file says about itself."""
    if source.is_dir():
        return _read_checkpoint(source)
    if not source.is_file():
        raise ValueError(f"There is no file {source}.")
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    if source.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{source}: what can be read ends in {', '.join(SUFFIXES)}, not in {source.suffix!r}.")
    return _read_torch(source), {}


def _read_torch(source: Path) -> dict[str, Any]:
    torch = _imported("torch")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, EOFError, UnpicklingError and others, by where the file breaks off
        if refused := re.search(r"Unsupported (?:global: GLOBAL|class|operand) ([\w.]+)", str(error)):
            raise ValueError(
                f"{source} holds a pickled object ({refused[1]}) and not weights alone. It was refused and nothing in "
                "it was executed; save its state_dict() instead."
            ) from None
        raise ValueError(f"{source} is damaged, or not a file of PyTorch: {_first_sentence(error)}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{source} holds no state_dict: names with a tensor each.")
    return dict(content)


def _read_safetensors(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    safetensors = _imported("safetensors")
    try:
        with safetensors.safe_open(source, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    except safetensors.SafetensorError as error:
        raise ValueError(f"{source} is damaged, or not a safetensors file: {_first_sentence(error)}") from None
    return tensors, {k.removeprefix(_PREFIX): value for k, value in metadata.items() if k.startswith(_PREFIX)}


def _read_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters and batch statistics of the newest step, hashes verified, by their paths in our model."""
    import orbax.checkpoint as ocp

    if not any(path.name.isdigit() for path in directory.iterdir()):
        raise ValueError(f"{directory} holds no checkpoint. Give the `checkpoints` folder of a run.")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(directory) as checkpoints:
        step = checkpoints.latest_step()
        with ocp.StandardCheckpointer() as reader:
            saved: Any = reader.metadata(directory.absolute() / str(step) / "state").item_metadata
        like = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) for path, leaf in saved.items()
        }
        state = checkpoints.restore(step or 0, like)
    groups = ("params/", "batch_stats/")
    tensors = {path.split("/", 1)[1]: value for path, value in state.items() if path.startswith(groups)}
    config = directory.absolute().parents[2] / "config.json"  # of runs/NAME/ARM/SEED/checkpoints
    said = {"model": json.loads(config.read_text())["train"]["model"]["name"]} if config.is_file() else {}
    return tensors, said


def _abstract(name: str, options: dict[str, Any]) -> nnx.Module:
    """The model without values."""
    return nnx.eval_shape(lambda: vc.models.create(name, rngs=nnx.Rngs(0), **options))


def _options(name: str, tensors: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """With which options the model has the file's classes, channels and image size; and whose names the file has."""
    model = _abstract(name, {})
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    namings = next(namings for kind, namings in NAMINGS.items() if isinstance(model, kind))
    shapes = {key.removeprefix("module."): tuple(value.shape) for key, value in tensors.items()}
    naming = max(namings, key=lambda naming: len(shapes.keys() & {namings[naming](path) for path in paths}))
    by_path = {"/".join(map(str, path)): shapes[key] for path in paths if (key := namings[naming](path)) in shapes}
    # In PyTorch's layout the input channels of a convolution are its second axis, and here its third.
    stem = "patch_conv/kernel" if "patch_conv/kernel" in by_path else "stem_conv/kernel"
    side, channels = (by_path[stem][-1], by_path[stem][1]) if len(by_path.get(stem, ())) == 4 else (1, 3)
    is_b = any(key.split(".")[2:4] == ["shortcut", "0"] for key in shapes)
    classes = by_path.get("head/bias", (1000,))[0]
    return _fitting(model, classes, channels, by_path.get("positions"), side, is_b), naming


def _options_of_checkpoint(tensors: Mapping[str, Any], said: Mapping[str, str]) -> dict[str, Any]:
    raise NotImplementedError


def _fitting(model: nnx.Module, *args: Any) -> dict[str, Any]:
    raise NotImplementedError


def _check_classes(source: Path, found: int, wanted: int | None) -> None:
    if wanted is not None and found != wanted:
        raise ValueError(f"{source} has {found} classes, and --num-classes is {wanted}.")
