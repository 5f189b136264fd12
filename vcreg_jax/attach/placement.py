"""Where in a model that was written elsewhere a regularizer goes: to which modules, and to what of their call."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import jax
from jax import Array

from vcreg_jax.regularizers.add_gradient import Regularizer, refuse_class
from vcreg_jax.regularizers.layouts import masked

Where = type | tuple[type, ...] | str | Callable[[str, Any], bool]


def matches(where: Where, path: str, module: Any) -> bool:
    """Whether `where` means this module, whose path is such as `encoder/blocks/0`.

    A class means its instances; a string is a pattern as for files, matched from the path's end and segment by segment
    (`blocks/*`), or from its start after a `/`; a function gets the path and the module.
    """
    if isinstance(where, str):
        return PurePosixPath(f"/{path}").match(where or "/")
    if isinstance(where, type | tuple):
        return isinstance(module, where)
    return bool(where(path, module))


def nothing_matched(where: Where, modules: Mapping[str, Any]) -> ValueError:
    """The error for a `where` that means none of the `modules`, by path, with those that it may have meant."""
    if isinstance(where, str):
        asked, known = where.strip("/"), list(modules)
    else:
        classes = where if isinstance(where, tuple) else (where,)
        asked = " or ".join(getattr(kind, "__name__", repr(kind)) for kind in classes)
        known = sorted({type(module).__name__ for module in modules.values()})
    known = list(dict.fromkeys(name for name in known if name))
    near = difflib.get_close_matches(asked, known, n=3, cutoff=0.4)
    what = "Near" if near else "It has"
    shown = ", ".join((near or known)[:12]) + (", ..." if not near and len(known) > 12 else "")
    return ValueError(f"where={asked!r} matches nothing that can be called in this model. {what}: {shown}.")


@dataclass(frozen=True)
class Placement:
    """A regularizer, and what of a module's call it is applied to."""

    reg: Regularizer
    item: str | int | None  # of an output that is no array, the path of the array in it
    at: Literal["output", "input"]
    mask: Callable[..., Array] | None  # from the call's arguments, which rows count

    def __post_init__(self) -> None:
        if self.at not in ("output", "input"):
            raise ValueError(f'at must be "output" or "input", got {self.at!r}.')
        refuse_class(self.reg)
        if not callable(self.reg):
            raise ValueError(f"A regularizer is a function of features, such as vc.VCReg(), got {self.reg!r}.")
        try:
            hash(self)
        except TypeError:
            raise ValueError(
                "A regularizer becomes part of the model's static structure, so its weights must be numbers, not "
                f"arrays, and a mask goes into mask=...; got {self.reg!r}."
            ) from None

    def with_regularizer(self, reg: Regularizer) -> "Placement":
        """The same with another regularizer, whose fields may be traced: for a model that lives in one trace."""
        other = object.__new__(type(self))
        vars(other).update(vars(self) | {"reg": reg})
        return other

    def regularizer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Regularizer:
        """The regularizer for a call with these arguments, of which a mask may come."""
        return self.reg if self.mask is None else masked(self.reg, self.mask(*args, **kwargs))

    def on_input(self, module: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The call's positional arguments, the first of them regularized if this is for the input."""
        if self.at == "output":
            return args
        if not args:
            raise ValueError(
                f'at="input" regularizes the first positional argument, but {module} was called with none.'
            )
        return (self._applied(f"{module} takes", args[0], args, kwargs), *args[1:])

    def on_output(self, module: str, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The call's output, regularized if this is for the output."""
        if self.at == "input":
            return output
        return self._applied(f"{module} returns", output, args, kwargs)

    def _applied(self, what: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        reg = self.regularizer(args, kwargs)
        if self.item is None and hasattr(value, "shape"):
            return reg(value)
        leaves, structure = jax.tree_util.tree_flatten_with_path(value)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        if str(self.item) not in names:
            choices = " or ".join(map(repr, names)) or "nothing"
            found = f"{what} a {type(value).__name__} of arrays at {choices}"
            wanted = "a regularizer takes one" if self.item is None else f"there is none at item={self.item!r}"
            raise ValueError(f"{found}; {wanted}. Say which with item=... or choose other modules.")
        at = names.index(str(self.item))
        arrays = [leaf for _, leaf in leaves]
        return jax.tree.unflatten(structure, [*arrays[:at], reg(arrays[at]), *arrays[at + 1 :]])
