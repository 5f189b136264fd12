"""Why a training stopped: the layer in which the first number that is not finite came up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from train.config import GuardConfig
from train.run.folder import write_json
from train.trainer.step import Batch, Loss, State

FILE = "nonfinite.json"


def first_bad_step(config: GuardConfig, state: State) -> int | None:
    """The step at which those began that made the guard give up; None if it did not."""
    in_a_row = int(state["guard"]["in_a_row"])
    return int(state["step"]) - in_a_row if in_a_row >= config.stop_after else None


def stop(loss_fn: Loss, state: State, batch: Batch, seed: int, first_step: int, folder: Path) -> FloatingPointError:
    """The error to stop with; what it says and more stands in `nonfinite.json` in the folder.

    `batch` is that of `first_step`, since which the parameters have not changed.
    """
    found = _explain(loss_fn, state | {"step": jnp.asarray(first_step, jnp.int32)}, batch, seed)
    culprit = first_bad(found)
    if jax.process_index() == 0:
        write_json(folder / FILE, {"step": first_step, "seed": seed, "first": culprit, **found})
    since = f"{int(state['guard']['in_a_row'])} updates in a row were not finite, from step {first_step} on"
    return FloatingPointError(f"{since}: {culprit}. Details: {folder / FILE}.")


def first_bad(found: Mapping[str, Any]) -> str:
    """In one line where it began: in parameters, on the way forward, or on the way back."""
    if bad := [entry["parameter"] for entry in found["gradients"] if not entry["parameter_is_finite"]]:
        return f"the parameter {bad[0]} is not finite itself"
    if bad := [entry["layer"] for entry in found["outputs"] if not entry["is_finite"]]:
        return f"the first output that is not finite is that of {bad[0]}"
    if not found["loss_is_finite"]:
        return "all layers' outputs are finite, the loss is not"
    if bad := [entry["parameter"] for entry in found["gradients"] if not entry["is_finite"]]:
        return f"the loss is finite; on the way back the first gradient that is not finite is that of {bad[-1]}"
    return "the norm of all gradients overflows, although each is finite"


def _explain(loss_fn: Loss, state: State, batch: Batch, seed: int) -> dict[str, Any]:
    """What the layers made of the batch, in their order, and what came back to their parameters."""
    names: list[str] = []

    @jax.jit
    def look(state, batch, seed):
        def loss_with_outputs(params):
            seen: list[tuple[str, Any]] = []
            loss, _ = loss_fn(params, state, batch, seed, lambda model: _recording(model, seen))
            names[:] = [name for name, _ in seen]
            return loss, [value for _, value in seen]

        (loss, outputs), gradients = jax.value_and_grad(loss_with_outputs, has_aux=True)(state["params"])
        return loss, outputs, jax.tree.map(_summary, (gradients, state["params"])), optax.tree.norm(gradients)

    loss, outputs, (gradients, params), norm = jax.device_get(look(state, batch, seed))
    of_gradients, _ = jax.tree_util.tree_flatten_with_path(gradients, is_leaf=_is_summary)
    of_params = jax.tree.leaves(params, is_leaf=_is_summary)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in of_gradients]
    entries = [
        {"parameter": path, **_plain(gradient), "parameter_is_finite": bool(param["is_finite"])}
        for path, (_, gradient), param in zip(paths, of_gradients, of_params, strict=True)
    ]
    return {
        "loss": str(loss),  # JSON has no NaN
        "loss_is_finite": bool(jnp.isfinite(loss)),
        "gradient_norm": str(norm),
        "outputs": [{"layer": name, **_plain(value)} for name, value in zip(names, outputs, strict=True)],
        "gradients": sorted(entries, key=lambda entry: _place(names, entry["parameter"])),
    }


def _place(names: list[str], parameter: str) -> int:
    """When the layer that owns the parameter, or the nearest around it that is called, was done."""
    owner = parameter
    while "/" in owner:
        owner = owner.rpartition("/")[0]
        if owner in names:
            return names.index(owner)
    return len(names)


def _recording(model: Any, seen: list[tuple[str, Any]]) -> nnx.Module:
    """The model, which from now on notes what comes out of each of its layers."""
    for path, module in nnx.iter_modules(model):
        kind, name = type(module), "/".join(map(str, path)) or "the network"
        if callable(module):
            new_type: Any = type(kind)
            module.__class__ = new_type(kind.__name__, (kind,), {"__call__": _noting(kind, name, seen)})
    if hasattr(model, "remat"):
        model.remat = False  # the same numbers, which would not come out of what is computed twice
    return model


def _noting(kind: type, name: str, seen: list[tuple[str, Any]]) -> Any:
    def call(self, *args, **options):
        output = kind.__call__(self, *args, **options)
        seen.append((name, _summary(output)))
        return output

    return call


def _summary(values: Any) -> dict[str, Array]:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(values)]
    finite = [jnp.isfinite(leaf) for leaf in leaves]
    largest = [jnp.where(ok, jnp.abs(leaf), 0).max() for ok, leaf in zip(finite, leaves, strict=True)]
    return {"is_finite": jnp.stack([ok.all() for ok in finite]).all(), "largest": jnp.stack(largest).max()}


def _is_summary(node: Any) -> bool:
    return isinstance(node, dict) and "is_finite" in node


def _plain(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {"is_finite": bool(summary["is_finite"]), "largest": float(summary["largest"])}
