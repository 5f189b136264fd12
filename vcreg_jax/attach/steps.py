"""The directions of a training step, for regularizers that look along random ones: `vc.at_step`."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from flax import nnx
from jax import Array
from jaxtyping import Int

from vcreg_jax.attach.nnx import placement_of, put_placement

_Regularized = TypeVar("_Regularized")


@runtime_checkable
class Redrawn(Protocol):
    """A regularizer whose directions are those of a step."""

    def at_step(self, step: int | Int[Array, ""], /) -> Any:
        """The same regularizer with the directions of this step."""
        ...


def at_step(regularized: _Regularized, step: int | Int[Array, ""]) -> _Regularized:
    """Give a regularizer, `Sites` or an NNX model the directions of this step; the step may be traced.

    Inside a jitted training step, which is compiled once:

        model = vc.at_step(nnx.merge(graphdef, params), step)

    A model is changed in place, so let it be one that was merged in this step. What has no directions stays as it is.

    Args:
      regularized: a regularizer, `Sites` or an NNX model.
      step: the training step; an integer or a traced one.

    Returns:
      The same regularizer, `Sites` or model, with that step's directions.
    """
    if isinstance(regularized, nnx.Module):
        for _, module in nnx.iter_modules(regularized):
            if (placement := placement_of(module)) is not None and (
                new := at_step(placement.reg, step)
            ) is not placement.reg:
                put_placement(module, placement.with_regularizer(new))
            for name, value in list(vars(module).items()):
                if not isinstance(value, nnx.Module) and (new := _redrawn(value, step)) is not value:
                    setattr(module, name, new)
        return regularized
    return _redrawn(regularized, step)


def _redrawn(value: Any, step: Any) -> Any:
    if isinstance(value, Redrawn):
        return value.at_step(step)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    inner = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    changed = {name: new for name, old in inner.items() if (new := _redrawn(old, step)) is not old}
    return replace(value, **changed) if changed else value
