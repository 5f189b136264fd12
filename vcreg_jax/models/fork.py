"""A regularizer where a residual block's input divides into its branch and its shortcut."""

import jax
from jax import Array, lax
from jaxtyping import Float

from vcreg_jax.regularizers import Regularizer, VCReg


def fork(
    regularize: Regularizer, x: Float[Array, "*samples d"]
) -> tuple[Float[Array, "*samples d"], Float[Array, "*samples d"]]:
    """`regularize(x)` twice, for the branch of a residual block that begins with a convolution and for its shortcut.

    The same numbers as `x = regularize(x)`. But a sampled `VCReg` computes its gradient only when the shortcut's is
    there, and adds it to that before the branch's comes in. A compiler for TPUs makes one pass of the convolution's
    backward, the sum and what follows, of which padding cannot be a part: it would pad the sampled gradient before, in
    fact as early as in the forward pass, and hold it. That was 14 % of a ResNet-50's memory in groups
    (docs/results/pod.md).
    """
    if isinstance(regularize, VCReg) and regularize.sample > 1:
        jax.eval_shape(regularize, x)  # refuses what it refuses
        return _fork(regularize, x)
    x = regularize(x)
    return x, x


@jax.custom_vjp
def _fork(reg: VCReg, x: Array) -> tuple[Array, Array]:
    del reg
    return x, x


def _fork_forward(reg, x):
    return (x, x), (reg, x)


def _fork_backward(residuals, incoming):
    reg, x = residuals
    of_branch, of_shortcut = incoming
    if reg.stride(x) == 1:  # too small a map to sample: nothing is padded
        return None, (of_branch + of_shortcut + reg.gradient(x)).astype(x.dtype)
    x, of_shortcut = lax.optimization_barrier((x, of_shortcut))
    return None, of_branch + (of_shortcut + reg.gradient(x)).astype(x.dtype)


_fork.defvjp(_fork_forward, _fork_backward)
