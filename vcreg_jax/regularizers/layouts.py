"""Regularizers for features that lie otherwise: on another axis than the last, with time, with rows that do not count.

Each is a function of a regularizer that returns a regularizer, so they nest and go wherever one goes.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from vcreg_jax.regularizers.add_gradient import Penalty, Regularizer, add_gradient, identity, pytree, refuse_class


def on_axis(reg: Regularizer, axis: int) -> Regularizer:
    """Return `reg` for features that lie on `axis` instead of the last.

    All other axes are samples, in their order; a group scope divides the first of them. Nothing is moved in the forward
    pass.

    Args:
      reg: a regularizer with a `gradient`, such as `VCReg`, or `identity`.
      axis: of the features; may be negative.

    Returns:
      A regularizer.

    Raises:
      ValueError: for a `reg` that is neither a regularizer with a `gradient` nor `identity`; and when called on
        features without that axis.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> reg = vc.on_axis(vc.VCReg(), 1)
      >>> reg(jnp.ones((2, 8, 4, 4))).shape  # (batch, d, height, width)
      (2, 8, 4, 4)
    """
    return identity if reg is identity else _OnAxis(_with_gradient(reg), axis)


def over_time(reg: Regularizer, statistics: Literal["pooled", "per_step"], axis: int = 1) -> Regularizer:
    """Return `reg` for features with a time, `(batch, time, d)`, with statistics of all steps together or of each.

    "pooled" is `reg` itself, since every leading axis counts as samples. "per_step" has the mean over the steps along
    `axis` of the penalty of each step's samples: with a `SIGReg` every step is to be normal, as in LeWorldModel, and a
    feature that varies over time alone counts as collapsed. It costs one all-reduce still, with all steps' statistics.

    Args:
      reg: a regularizer with a `gradient`, or `identity`.
      statistics: "pooled" or "per_step", as above.
      axis: of time.

    Returns:
      A regularizer.

    Raises:
      ValueError: for other statistics, a `reg` that is neither a regularizer with a `gradient` nor `identity`; and when
        called on features without that axis, or that lie on it.
    """
    if statistics not in ("pooled", "per_step"):
        raise ValueError(f'over_time needs statistics "pooled" or "per_step", got {statistics!r}.')
    if reg is identity or statistics == "pooled":
        return reg
    return _PerStep(_with_gradient(reg, "over_time"), axis)


def masked(reg: Regularizer, mask: Bool[ArrayLike, "*leading"] | Int[ArrayLike, "*leading"]) -> Regularizer:
    """Return `reg` of the rows where `mask` is true (or not 0) alone, as if the others were not there: padding tokens.

    Statistics, counts and penalty are those of the kept rows, in a group scope of each group's own. Rows that are left
    out receive nothing from `reg`, whatever they hold, NaN included; their incoming gradient passes unchanged. It
    sends no more than `reg` does: the counts travel with the statistics.

    Args:
      reg: a regularizer whose `penalty` and `gradient` take `keep`, as all of this library do; one of them `on_axis`
        or `over_time`; or `identity`.
      mask: of the shape of the features without their last axis, or of the leading axes of that: `(batch, tokens)`
        for features `(batch, tokens, d)`, `(batch,)` for whole examples. Boolean or integer; may be traced.

    Returns:
      A regularizer.

    Raises:
      ValueError: for another `reg`; and when called on features whose leading axes are not those of the mask.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> tokens = jnp.ones((2, 5, 8))  # (batch, tokens, d)
      >>> mask = jnp.arange(5)[None] < jnp.array([[3], [5]])  # (batch, tokens)
      >>> vc.masked(vc.VCReg(), mask)(tokens).shape
      (2, 5, 8)
    """
    refuse_class(reg)
    if reg is identity:
        return identity
    if isinstance(reg, _OnAxis):
        return on_axis(masked(reg.reg, mask), reg.axis)
    if not _takes_keep(reg):
        raise ValueError(
            f"masked takes a regularizer whose penalty takes keep, got {reg!r}. Mask what is inside, then wrap it."
        )
    return _Masked(cast(Any, reg), jnp.asarray(mask))


def _with_gradient(reg: Regularizer, name: str = "on_axis") -> Penalty:
    refuse_class(reg)
    if not isinstance(reg, Penalty):
        raise ValueError(f"{name} takes a regularizer with a penalty and a gradient, or vc.identity; got {reg!r}.")
    return reg


def _takes_keep(reg: object) -> bool:
    """Whether it can leave rows out by itself."""
    return isinstance(reg, Penalty) and "keep" in inspect.signature(reg.penalty).parameters


@pytree("reg")
@dataclass(frozen=True)
class _OnAxis:
    reg: Penalty
    axis: int

    def __call__(self, h: Float[Array, "..."], /) -> Float[Array, "..."]:
        if not -h.ndim <= self.axis < h.ndim:
            raise ValueError(f"on_axis({self.axis}) needs features with that axis, got shape {h.shape}.")
        jax.eval_shape(lambda h: self.reg(self._moved(h)), h)  # refuses here, not in the backward pass
        return add_gradient(self, h)

    def penalty(self, h: Float[Array, "..."], /) -> Float[Array, ""]:
        return self.reg.penalty(self._moved(h))

    def gradient(self, h: Float[Array, "..."], /) -> Float[Array, "..."]:
        return jnp.moveaxis(self.reg.gradient(self._moved(h)), -1, self.axis)

    def _moved(self, h: Array) -> Array:
        return jnp.moveaxis(h, self.axis, -1)


@pytree("reg")
@dataclass(frozen=True)
class _PerStep:
    reg: Penalty
    axis: int

    def __call__(self, h: Float[Array, "..."], /) -> Float[Array, "..."]:
        axis = self._of(h)
        jax.eval_shape(self.reg, h.take(0, axis))  # refuses here, not in the backward pass
        return add_gradient(self, h)

    def penalty(self, h: Float[Array, "..."], /, keep: Bool[Array, "..."] | None = None) -> Float[Array, ""]:
        def of_step(h, keep):
            return self._of_kept(keep).penalty(h)

        return jax.vmap(of_step, in_axes=self._of(h))(h, keep).mean()

    def gradient(self, h: Float[Array, "..."], /, keep: Bool[Array, "..."] | None = None) -> Float[Array, "..."]:
        def of_step(h, keep):
            return self._of_kept(keep).gradient(h)

        axis = self._of(h)
        return jax.vmap(of_step, in_axes=axis, out_axes=axis)(h, keep) / h.shape[axis]

    def _of_kept(self, keep: Array | None) -> Any:
        return self.reg if keep is None else masked(self.reg, keep)

    def _of(self, h: Array) -> int:
        """The axis of time, counted from the first."""
        axis = self.axis % h.ndim if -h.ndim <= self.axis < h.ndim else h.ndim
        if axis >= h.ndim - 1:
            raise ValueError(
                f"over_time with axis={self.axis} needs features with that axis before their last, got shape {h.shape}."
            )
        return axis


@pytree("reg", "mask")
@dataclass(frozen=True)
class _Masked:
    reg: Any  # its penalty and gradient take `keep`
    mask: Array

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        self.reg(h)  # checks the features
        self._keep(h)
        return add_gradient(self, h)

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        return self.reg.penalty(h, self._keep(h))

    def gradient(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        return self.reg.gradient(h, self._keep(h))

    def _keep(self, h: Array) -> Array:
        """Which rows count, of the shape of the features without their last axis."""
        leading = self.mask.ndim
        if self.mask.shape != h.shape[:-1][:leading]:
            raise ValueError(
                f"A mask of shape {self.mask.shape} does not fit features of shape {h.shape}: it needs their leading "
                f"axes, such as {h.shape[:-1]}."
            )
        rest = h.ndim - 1 - leading
        return jnp.broadcast_to(jnp.expand_dims(self.mask != 0, tuple(range(leading, leading + rest))), h.shape[:-1])
