"""A multilayer perceptron on the pixels of an image, without normalization and without shortcuts."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.models.layers import Site, torch_default, torch_default_bias
from vcreg_jax.models.patches import PatchProjection
from vcreg_jax.regularizers.add_gradient import identity
from vcreg_jax.regularizers.sites import Sites


class HiddenLayer(nnx.Module):
    """A linear layer, the regularizer of its output, and a ReLU."""

    def __init__(self, linear: nnx.Linear, site: Site):
        self.linear = linear
        self.site = site

    def __call__(self, x: Float[Array, "b d"], train: bool) -> Float[Array, "b e"]:
        """The layer's output."""
        return jax.nn.relu(self.site(self.linear(x), train))


class MLP(nnx.Module):
    """Linear layers with a ReLU after each but the last; a call returns `(logits, features)`.

    `sites.block` is applied to every layer's output before its ReLU, as Weak-SIGReg's authors do (arXiv 2603.05924;
    `cifar100/train` of kreasof-ai/sigreg). There is no downsampling layer.

    Args:
      depth: number of linear layers, the classifier among them.
      width: of every hidden layer.
      image_size: side of the images.
      num_classes: width of the logits.
      in_channels: channels of the images.
      stochastic_depth: 0, since there are no residual blocks to drop.
      features_only: no classifier; the logits are None.
      sites: where regularizers are applied.
      dtype: of the computation; parameters are float32.
      rngs: its `params` stream draws the initial weights, as torch does by default.

    Raises:
      ValueError: for fewer than two layers, for stochastic depth, for `sites.downsample`, and when called on images
        of another size.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        image_size: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        stochastic_depth: float = 0.0,
        features_only: bool = False,
        sites: Sites = Sites(),  # noqa: B008 - frozen
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth < 2 or width < 1:
            raise ValueError(f"An MLP needs at least 2 layers, at least 1 wide, got {depth} layers, {width} wide.")
        if stochastic_depth:
            raise ValueError(f"An MLP has no residual blocks that could be dropped, got a rate of {stochastic_depth}.")
        if sites.downsample is not identity:
            raise ValueError(
                "An MLP has no downsampling layers, so Sites(downsample=...) would do nothing. Use Sites(block=...)."
            )

        linear = partial(
            nnx.Linear, width, kernel_init=torch_default, bias_init=torch_default_bias(width), dtype=dtype, rngs=rngs
        )
        # One patch, as large as the image: a linear layer whose weights tell the images' size and channels.
        self.patch_conv = PatchProjection(
            in_channels,
            width,
            (image_size, image_size),
            kernel_init=torch_default,
            bias_init=torch_default_bias(image_size**2 * in_channels),
            dtype=dtype,
            rngs=rngs,
        )
        self.patch_site = Site(sites.block, width)
        self.layers = nnx.List(HiddenLayer(linear(width), Site(sites.block, width)) for _ in range(depth - 2))
        self.head = None if features_only else linear(num_classes)
        self.image_size = image_size
        self.site = Site(sites.features, width)

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b k"] | None, Float[Array, "b d"]]:
        """`(logits, features)`, features being the input of the classifier; `rngs` is not needed."""
        side = self.image_size
        if images.shape[1:3] != (side, side):
            raise ValueError(
                f"This MLP takes images of {side}x{side}, got {images.shape[1]}x{images.shape[2]}. "
                "Resize them, or create it with another image_size."
            )
        x = jax.nn.relu(self.patch_site(self.patch_conv(images).reshape(images.shape[0], -1), train))
        for layer in self.layers:
            x = layer(x, train)
        features = self.site(x, train)
        return None if self.head is None else self.head(features), features
