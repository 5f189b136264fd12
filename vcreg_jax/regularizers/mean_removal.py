"""The paper's mean removal layer (Appendix A; the comment in Algorithm 1): features less their mean over the batch."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from vcreg_jax.regularizers.add_gradient import Regularizer, identity, refuse_class
from vcreg_jax.regularizers.statistics import in_groups, shard_axes, statistics_dtype


@dataclass(frozen=True)
class RemoveMean:
    """Ask a model of this package to take the batch's mean off its features before `reg` sees them.

    It stands in `Sites` where `reg` alone would stand. In training the network goes on with h - mean, the mean being
    taken over the batch and all positions; at inference it uses a running mean (`MeanRemoval`). `VCReg` itself only
    leaves the mean out of its statistics, so its penalty is the same with or without this layer. The network is
    another one, and so are its loss and gradients.

    Args:
      reg: what is applied to the features without their mean. A `scope` of k groups holds for the means, too.

    Raises:
      ValueError: for the class of a regularizer, and when called: without a model it has no running mean.

    Examples:
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> sites = vc.Sites(block=vc.RemoveMean(vc.VCReg(alpha=0.64, beta=0.08)))
      >>> model = vc.models.create("resnet20", num_classes=10, sites=sites, rngs=nnx.Rngs(0))

    Reference:
      The VCReg paper (arXiv 2306.13292), Appendix A: "the addition of a mean removal layer along the batch preceding
      the VCReg layer".
    """

    reg: Regularizer = identity

    def __post_init__(self) -> None:
        refuse_class(self.reg)

    def __call__(self, h: Float[Array, "*samples d"], /) -> Float[Array, "*samples d"]:
        """Refuse: a function of features alone does not know whether the model trains."""
        raise ValueError(
            "RemoveMean needs a running mean, which a model of vcreg_jax.models keeps for it: use it in vc.Sites. In "
            "another model put a vc.MeanRemoval(dim) before the regularizer."
        )


class MeanRemoval(nnx.Module):
    """Take the mean over all samples off the features: a batch norm that neither scales nor learns.

    In training the mean is the batch's, and gradients flow through it. Otherwise it is the running one, which every
    training step moves by a tenth of the way. Means are float32 or wider; the result keeps the dtype of its input.
    Under `pmap` every device takes the mean of its own rows, as the models' batch norms do.

    Args:
      dim: number of features, the last axis.
      scope: `"global"` takes the mean of the whole batch, also when it is sharded; k takes one for each of k groups of
        consecutive rows.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> layer = vc.MeanRemoval(2)
      >>> layer(jnp.array([[1.0, 5.0], [3.0, 5.0]]), train=True)
      Array([[-1.,  0.],
             [ 1.,  0.]], dtype=float32)
      >>> layer.mean[...]
      Array([0.2, 0.5], dtype=float32)
    """

    momentum = 0.1  # the share of the new value, as in torch's batch norm

    def __init__(self, dim: int, *, scope: Literal["global"] | int = "global"):
        self.scope: Literal["global"] | int = scope
        self.mean = nnx.BatchStat(jnp.zeros((dim,)))

    def __call__(self, h: Float[Array, "*samples d"], train: bool) -> Float[Array, "*samples d"]:
        """Features without their mean; with `train`, the running mean is updated."""
        wide = h.astype(statistics_dtype(h))
        if not train:
            return (wide - jnp.expand_dims(self.mean[...], tuple(range(h.ndim - 1)))).astype(h.dtype)
        axes = shard_axes(h)
        groups = wide[None] if self.scope == "global" else in_groups(wide, self.scope)
        mean = groups.mean(axis=tuple(range(1, groups.ndim - 1)), keepdims=True)
        if axes and self.scope == "global":
            mean = lax.pmean(mean, axes)
        of_batch = lax.stop_gradient(mean).reshape(-1, h.shape[-1]).mean(axis=0)
        if axes and self.scope != "global":
            of_batch = lax.pmean(of_batch, axes)
        running = self.mean[...]
        self.mean[...] = ((1 - self.momentum) * running + self.momentum * of_batch).astype(running.dtype)
        return (groups - mean).reshape(h.shape).astype(h.dtype)
