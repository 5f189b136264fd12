"""A regularizer's penalty in the backward pass by autodiff: the "naive" column of Table 1."""

from dataclasses import dataclass

import jax
from jax import Array
from jaxtyping import Float

from vcreg_jax.regularizers.add_gradient import Penalty, add_gradient, pytree, refuse_class


@pytree("reg")
@dataclass(frozen=True)
class explicit:  # noqa: N801 - reads as a function of a regularizer, `explicit(reg)`
    """Take `reg` with a backward pass that is autodiff of `reg.penalty`: the "naive" column of Table 1.

    The same mathematics as `reg`, from the written-out scalar: for comparing speed, and numbers.

    Args:
      reg: a regularizer with a `penalty`, such as `VCReg`.

    Raises:
      ValueError: for the class of a regularizer in place of one with its weights.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> h, reg = jax.random.normal(jax.random.key(0), (32, 8)) / 2, vc.VCReg()
      >>> fast, naive = (jax.grad(lambda h, reg=reg: reg(h).sum())(h) for reg in (reg, vc.explicit(reg)))
      >>> bool(jnp.allclose(fast, naive, atol=1e-6))
      True
    """

    reg: Penalty

    def __post_init__(self) -> None:
        refuse_class(self.reg)

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`h` itself; the backward pass adds `gradient(h)`."""
        jax.eval_shape(self.reg, h)  # refuses here, not in the backward pass, what `reg` refuses
        return add_gradient(self, h)

    def penalty(self, h: Float[Array, "*samples d"], /) -> Float[Array, ""]:
        """`reg.penalty(h)`."""
        return self.reg.penalty(h)

    def gradient(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """`jax.grad(reg.penalty)(h)`."""
        return jax.grad(self.reg.penalty)(h)
