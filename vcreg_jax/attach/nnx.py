"""Regularizers in any Flax NNX model, also one that was written without a thought of them: `attach` and `detach`."""

import functools
import types
from collections.abc import Callable
from typing import Any, Literal

from flax import nnx
from jax import Array

from vcreg_jax.attach.placement import Placement, Where, matches, nothing_matched
from vcreg_jax.regularizers.add_gradient import Regularizer

_PLACEMENT = "_vcreg_placement"  # of a class made by `attach`


def attach(
    model: nnx.Module,
    reg: Regularizer,
    *,
    where: Where,
    item: str | int | None = None,
    at: Literal["output", "input"] = "output",
    mask: Callable[..., Array] | None = None,
) -> tuple[str, ...]:
    """Apply `reg` to the output of every module that `where` means, from now on and in place.

    Each such module becomes an instance of a subclass of its class whose call returns `reg` of what it returned.
    Parameters, state and checkpoints stay what they were, and so does the compiled inference program. It holds
    through `nnx.split` and `merge`, `jit`, `grad`, `scan` and `remat`; a structure that was split off before is without
    it. A module that is used twice is regularized at each use. `detach` undoes it.

    Args:
      model: any NNX model.
      reg: a regularizer; its weights are numbers, not arrays.
      where: which modules: a class or several; a pattern of paths such as `"blocks/*"`, matched from the path's end as
        for files, or from its start if it begins with `/`; or a function of path and module.
      item: which array of an output that is a tuple, dict or other pytree: `0`, `"features"`, `"hidden/2"`. The carry
        of a scan's body is 0.
      at: `"input"` regularizes the module's first argument instead: the features, before a classifier `"head"`.
      mask: from the arguments of the module's call, which rows count: `mask=lambda x, mask: mask`. See `masked`.

    Returns:
      The paths of the modules that now have it.

    Raises:
      ValueError: for a `where` that matches nothing, naming what is near; a module that has a regularizer already; a
        `reg` that holds arrays. When the model is called, for an output that is no array, naming its arrays.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 3, rngs=nnx.Rngs(1)))
      >>> vc.attach(model, vc.VCReg(alpha=0.64, beta=0.08), where="layers/0")
      ('layers/0',)
    """
    placement = Placement(reg, item, at, mask)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    chosen = {path: module for path, module in modules.items() if callable(module) and matches(where, path, module)}
    if not chosen:
        raise nothing_matched(where, {path: module for path, module in modules.items() if callable(module)})
    if taken := [path for path, module in chosen.items() if hasattr(module, _PLACEMENT)]:
        raise ValueError(
            f"{taken[0] or 'The model'!r} has a regularizer already, and two would add up. Use vc.detach(model) first, "
            "or attach one function of both, such as lambda h: first(second(h))."
        )
    for module in chosen.values():
        object.__setattr__(module, "__class__", _shared_class(type(module), placement))
    return tuple(chosen)


def detach(model: nnx.Module) -> tuple[str, ...]:
    """Take off what `attach` put on `model`, in place: its modules are of their own classes again.

    Args:
      model: any NNX model.

    Returns:
      The paths of the modules that had a regularizer.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu)
      >>> _ = vc.attach(model, vc.VCReg(), where=nnx.Linear)
      >>> vc.detach(model)
      ('layers/0',)
    """
    chosen = {path: module for path, module in nnx.iter_modules(model) if hasattr(module, _PLACEMENT)}
    for module in chosen.values():
        object.__setattr__(module, "__class__", type(module).__bases__[0])
    return tuple("/".join(map(str, path)) for path in chosen)


def placement_of(module: Any) -> Placement | None:
    """What was attached to `module`, if anything was."""
    return getattr(module, _PLACEMENT, None)


def put_placement(module: Any, placement: Placement) -> None:
    """Replaces what is attached to `module`, by a class that no other module shares."""
    object.__setattr__(module, "__class__", _regularize(type(module).__bases__[0], placement))


def _regularize(cls: Any, placement: Placement) -> type:
    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - the method it becomes
        args = placement.on_input(cls.__name__, args, kwargs)
        return placement.on_output(cls.__name__, cls.__call__(self, *args, **kwargs), args, kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {"__call__": __call__, "__module__": cls.__module__, "__doc__": cls.__doc__, _PLACEMENT: placement}

    return types.new_class(f"Regularized{cls.__name__}", (cls,), {"pytree": cls._pytree__is_pytree}, fill)


_shared_class = functools.cache(_regularize)  # equal placements give one class, so equal models one compiled program
