"""The projector of self-supervised learning: what the loss sees, and what is thrown away afterwards."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.models.layers import BatchNorm, torch_default


class Projector(nnx.Module):
    """Linear layers with a batch norm and a ReLU after each but the last, which `norm_last` gives a norm alone.

    No layer has a bias: a norm would take it away again, and the references have none in the last one either.
    `Projector(2048, (2048, 256))` and `(2048, (8192, 8192))` are Appendix C.4's for SimCLR and VICReg;
    `(2048, (8192, 8192, 8192), norm_last=False)` is that of the VICReg and Barlow Twins papers.

    Args:
      features: width of the input.
      widths: of each layer; the last is the embedding's.
      norm_last: a norm after the last layer too.
      norm_scope: whose statistics the norms take; see `BatchNorm`.
      dtype: of the computation; parameters are float32.
      rngs: its `params` stream draws the weights, as torch does by default.

    Raises:
      ValueError: without a layer, or for a width below 1; when called, for features of another width.
    """

    def __init__(
        self,
        features: int,
        widths: Sequence[int],
        *,
        norm_last: bool = True,
        norm_scope: Literal["global"] | int = "global",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not widths or min(features, *widths) < 1:
            raise ValueError(f"Projector needs at least one layer, all at least 1 wide, got {features} -> {widths}.")
        self.features = features
        dims = (features, *widths)
        self.layers = nnx.List(
            nnx.Linear(before, after, use_bias=False, kernel_init=torch_default, dtype=dtype, rngs=rngs)
            for before, after in zip(dims, widths, strict=False)
        )
        self.norms = nnx.List(
            BatchNorm(width, scope=norm_scope, dtype=dtype) for width in (widths if norm_last else widths[:-1])
        )

    def __call__(self, features: Float[Array, "b d"], train: bool) -> Float[Array, "b e"]:
        """The embeddings; with `train` the norms use the batch's statistics and update their running ones."""
        if features.shape[-1] != self.features:
            raise ValueError(
                f"This projector takes features {self.features} wide, got {features.shape}. Make it for the backbone."
            )
        x = features
        for index, layer in enumerate(self.layers):
            x = layer(x)
            x = self.norms[index](x, train) if index < len(self.norms) else x
            x = jax.nn.relu(x) if index < len(self.layers) - 1 else x
        return x


class Projected(nnx.Module):
    """A backbone made with `features_only=True` and a projector of its features: `(embeddings, features)`."""

    def __init__(self, backbone: nnx.Module, projector: Projector):
        self.backbone = backbone
        self.projector = projector

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b e"], Float[Array, "b d"]]:
        """The embeddings and the features they are of; arguments as for the backbone."""
        _, features = self.backbone(images, train=train, rngs=rngs)  # pyright: ignore[reportCallIssue]
        return self.projector(features, train), features
