"""Weights from PyTorch and back: torchvision's, timm's and akamaster's names for the models of this package.

Torch itself is not needed: weights are mappings from names to arrays. The names are in `models.torch_names`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vcreg_jax.models.positions import resize_positions as resized
from vcreg_jax.models.torch_names import HEADS, KINDS, NAMINGS, Path, from_torch, to_torch


def load(
    model: nnx.Module, state_dict: Mapping[str, Any], *, head: bool = True, resize_positions: bool = False
) -> None:
    """Set every parameter and running statistic of `model`, in place, from PyTorch's `state_dict`.

    Names are recognised: torchvision's and timm's, akamaster's for CIFAR ResNets, a `module.` before all of them,
    torchvision's older `mlp.linear_1` in ViT. Values keep the model's dtype. Torch's `num_batches_tracked`, which
    counts steps and is used by nothing here, is left out.

    Args:
      model: a model of `vcreg_jax.models`.
      state_dict: names to arrays or torch tensors, as `module.state_dict()` gives them.
      head: False leaves the model's classifier, if it has one, as it is and the file's unused.
      resize_positions: interpolate a ViT's position embeddings to the model's image size as the library does whose
        names the file has (`models.positions`).

    Raises:
      ValueError: when anything in the file has no place or another shape, or anything in the model gets no value,
        listing all of it; nothing has been changed then.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> first, second = (vc.models.create("resnet20", num_classes=10, rngs=nnx.Rngs(seed)) for seed in (0, 1))
      >>> vc.torch_weights.load(second, vc.torch_weights.export(first))
    """
    if nested := [key for key, value in state_dict.items() if isinstance(value, Mapping)]:
        raise ValueError(f"The weights are one level down: pass state_dict[{nested[0]!r}], of {', '.join(state_dict)}.")
    namings = _namings_of(model)
    source = {_current_name(key): value for key, value in _without_prefix(state_dict).items()}
    variables = _variables(model)
    naming = max(namings, key=lambda name: len(source.keys() & {namings[name](path) for path in variables}))
    keys = {path: namings[naming](path) for path in variables}
    if not head:
        of_head = {namings[naming](("head", leaf)) for leaf in ("kernel", "bias")}
        source = {key: value for key, value in source.items() if key not in of_head}
        keys = {path: key for path, key in keys.items() if key not in of_head}
    values, misfits = {}, []
    for path, key in keys.items():
        if key not in source:
            continue
        value, shape = _to_numpy(source[key]), variables[path].shape
        if resize_positions and path == ("positions",) and value.ndim == 3 and value.shape[1] != shape[1]:
            value = resized(value, shape[1], align_corners=naming == "torchvision")
        values[path] = from_torch(path, value)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            misfits.append(f"{key}: {value.dtype} in the file, floating point in the model")
        elif values[path].shape != shape:
            wanted = to_torch(path, np.broadcast_to(np.float32(0), shape), naming, model).shape
            misfits.append(f"{key}: {value.shape} in the file, {wanted} in the model")
    unused = [key for key in source if key not in keys.values() and not key.endswith("num_batches_tracked")]
    unfilled = [key for key in keys.values() if key not in source]
    if unused or unfilled or misfits:
        raise ValueError(_complaint(model, source, unused, unfilled, misfits))
    placed = {path: _place(value, variables[path].get_value()) for path, value in values.items()}
    nnx.update(model, nnx.from_flat_state((path, variables[path].replace(value)) for path, value in placed.items()))


def export(model: nnx.Module, naming: str | None = None) -> dict[str, np.ndarray]:
    """Return the weights of `model` under PyTorch's names, for `load_state_dict(..., strict=True)` there.

    Args:
      model: a model of `vcreg_jax.models`.
      naming: "torchvision" or "timm" (for ViT and ConvNeXt they differ), or "akamaster" for CIFAR ResNets. By
        default "torchvision" where there is one.

    Returns:
      Arrays in PyTorch's layouts, with a `num_batches_tracked` of 0 for every batch norm.

    Raises:
      ValueError: for a naming that this kind of model does not have, and for a model with `RemoveMean`.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> weights = vc.torch_weights.export(vc.models.create("resnet18", rngs=nnx.Rngs(0)))
      >>> weights["conv1.weight"].shape
      (64, 3, 7, 7)
    """
    namings = _namings_of(model)
    naming = naming or next(iter(namings))
    if naming not in namings:
        raise ValueError(
            f"A {type(model).__name__} is exported with naming {' or '.join(map(repr, namings))}, got {naming!r}."
        )
    exported, variables = {}, _variables(model)
    if removed := [path for path in variables if "mean_removal" in path]:
        raise ValueError(
            f"PyTorch's {type(model).__name__} has no layer that removes means, this one has {len(removed)} "
            "(vc.RemoveMean). Save the model itself, or export it as a program."
        )
    for path, variable in variables.items():
        key = namings[naming](path)
        exported[key] = np.array(to_torch(path, np.asarray(variable[...]), naming, model), order="C")
        if path[-1] == "var":
            exported[key.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return exported


def _namings_of(model: nnx.Module) -> dict[str, Callable[[Path], str]]:
    for kind, namings in NAMINGS.items():
        if isinstance(model, kind):
            return namings
    known = ", ".join(kind.__name__ for kind in NAMINGS)
    raise ValueError(f"PyTorch's names are known for {known}, not for {type(model).__name__}.")


def _variables(model: nnx.Module) -> dict[Path, nnx.Variable]:
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))


def _without_prefix(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    # Torchvision's averaged models count their updates beside the weights.
    weights = {key: value for key, value in state_dict.items() if key != "n_averaged"}
    while weights and all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def _current_name(key: str) -> str:
    return key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # NumPy has no bfloat16
    return np.asarray(value)


def _place(value: np.ndarray, current: Any) -> jax.Array:
    """`value` with the dtype of `current` and, where that is spread over devices, its sharding."""
    value = value.astype(current.dtype)
    sharding = getattr(current, "sharding", None)
    spread = sharding is not None and len(sharding.device_set) > 1
    return jax.device_put(value, sharding) if spread else jnp.asarray(value)


def _complaint(
    model: nnx.Module, source: Mapping[str, Any], unused: list[str], unfilled: list[str], misfits: list[str]
) -> str:
    """What is wrong and what to do, in a sentence or two, then everything that does not fit."""
    kind = type(model).__name__
    found = next((name for key, name in KINDS if key in source), None)
    if found is None or not found.startswith(kind):
        first = f"These are not the weights of a {kind}" + (f" but of a {found}." if found else ".")
    elif misfits and not unused and not unfilled and all(line.startswith(HEADS) for line in misfits):
        first = (
            "The file has another number of classes than the model. Create the model with as many, or pass head=False "
            "to keep its own classifier."
        )
    elif unused and not unfilled and not misfits and all(key.startswith(HEADS) for key in unused):
        first = "The model has no classifier (features_only). Pass head=False to leave the file's unused."
    elif misfits and all("pos" in line and "embed" in line for line in misfits) and not unused and not unfilled:
        first = "The file's images had another size. Pass resize_positions=True to interpolate its position embeddings."
    else:
        first = f"The weights do not fit this {kind}: has it the depth and the width that they were trained with?"
    lists = (("in the file but not in the model", unused), ("in the model but not in the file", unfilled))
    lists += (("of another shape or type", misfits),)
    return "\n".join([first, *(f"{len(keys)} {what}:\n  " + "\n  ".join(keys) for what, keys in lists if keys)])
