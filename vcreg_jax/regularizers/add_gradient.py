"""How a penalty becomes a function `h -> h`: the one mechanism that every regularizer shares."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

_Class = TypeVar("_Class")


@runtime_checkable
class Regularizer(Protocol):
    """Anything that maps features to themselves and, in the backward pass, adds a gradient of its own."""

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`h` itself."""
        ...


@runtime_checkable
class Penalty(Regularizer, Protocol):
    """A regularizer that can also be written out as a scalar."""

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        """The scalar whose gradient the backward pass adds."""
        ...

    def gradient(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """What the backward pass adds."""
        ...


def identity(h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
    """Return `h`; the backward pass adds nothing. It stands where there is no regularizer.

    Args:
      h: features `(*samples, d)`, of any dtype.

    Returns:
      `h` itself.
    """
    return h


def refuse_class(reg: object) -> None:
    """Refuses the class of a regularizer where one with its weights is meant.

    It is a function, too: called, it would take features for its first weight and add nothing.

    Raises:
      ValueError: for a class.
    """
    if isinstance(reg, type):
        raise ValueError(f"A regularizer is wanted, got the class {reg.__name__} itself. Write {reg.__name__}(...).")


@jax.custom_vjp
def add_gradient(reg: Penalty, h: Float[Array, "*samples d"]) -> Float[Array, "*samples d"]:
    """`h` itself; the backward pass adds `reg.gradient(h)` to the incoming gradient.

    `reg` is a pytree, so its weights may be traced. The sum is taken in the dtype of `reg.gradient(h)` and
    returned in that of `h`. The weights of `reg` themselves receive a zero gradient.
    """
    del reg
    return h


def _add_gradient_forward(reg, h):
    return h, (reg, h)


def _add_gradient_backward(residuals, incoming):
    reg, h = residuals
    incoming = jnp.asarray(incoming)  # whoever pulls back by hand may have NumPy's
    return None, (incoming + reg.gradient(h)).astype(h.dtype)


add_gradient.defvjp(_add_gradient_forward, _add_gradient_backward)


def pytree(*children: str) -> Callable[[type[_Class]], type[_Class]]:
    """Registers a dataclass whose fields `children` may be traced; the others are static.

    JAX rebuilds it around placeholders, which are no weights: hence not through the constructor, which would
    refuse them (as it does under `jax.tree_util.register_dataclass` once types are checked at run time).
    """

    def register(cls: type[_Class]) -> type[_Class]:
        static = tuple(name for name in cls.__annotations__ if name not in children)

        def flatten(reg):
            keyed = [(jax.tree_util.GetAttrKey(name), getattr(reg, name)) for name in children]
            return keyed, tuple(getattr(reg, name) for name in static)

        def unflatten(static_values, values):
            reg = object.__new__(cls)
            vars(reg).update(zip(children + static, (*values, *static_values), strict=True))
            return reg

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register
