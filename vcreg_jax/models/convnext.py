"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545), channels last.

One module serves torchvision's tiny, small and base, and timm's atto, femto, pico and nano: the 1x1 convolutions
of the latter are the linear layers of the former.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.models.depthwise import DepthwiseConv
from vcreg_jax.models.layers import DropPath, Site, linear_rates, run_blocks
from vcreg_jax.models.lean import LayerNorm, gelu
from vcreg_jax.regularizers.sites import Sites

# Torch's trunc_normal_(std=0.02) cuts at +-2, not at two standard deviations: a plain normal for all that matters.
_weights = jax.nn.initializers.normal(0.02)
_EPSILON = 1e-6


class Block(nnx.Module):
    """x + drop_path(layer_scale * mlp(norm(depthwise(x)))), then `sites.block`."""

    def __init__(self, dim: int, drop_rate: float, sites: Sites, dtype: DTypeLike, rngs: nnx.Rngs):
        self.depthwise = DepthwiseConv(dim, 7, kernel_init=_weights, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.expand = nnx.Linear(dim, 4 * dim, kernel_init=_weights, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(4 * dim, dim, kernel_init=_weights, dtype=dtype, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full((dim,), 1e-6, jnp.float32))
        self.drop_path = DropPath(drop_rate)
        self.site = Site(sites.block, dim)

    def __call__(self, x: Float[Array, "b h w c"], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        """The block's output, of the shape of its input."""
        y = self.norm(self.depthwise(x))
        y = self.project(gelu(self.expand(y)))
        y = self.drop_path(y * jnp.broadcast_to(self.layer_scale[...].astype(y.dtype), y.shape), rngs)
        return self.site(x + y, train)


class Downsample(nnx.Module):
    """Norm and a 2x2 convolution of stride 2, then `sites.downsample`; odd sizes are floored, as in torch."""

    def __init__(self, in_dim: int, out_dim: int, sites: Sites, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(in_dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(
            in_dim, out_dim, (2, 2), strides=2, padding="VALID", kernel_init=_weights, dtype=dtype, rngs=rngs
        )
        self.site = Site(sites.downsample, out_dim)

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The map at half the resolution."""
        return self.site(self.conv(self.norm(x)), train)


class ConvNeXt(nnx.Module):
    """A ConvNeXt classifier; a call returns `(logits, features)`.

    Args:
      depths: blocks in each stage.
      dims: channels of each stage.
      patch_size: side of the stem's patches, 4 in every published size.
      num_classes: width of the logits.
      in_channels: channels of the images.
      stochastic_depth: drop rate of the last block; earlier blocks' rates grow linearly from 0.
      timm_conv_mlp: whether timm stores the blocks' linear layers as 1x1 convolutions, as in atto to nano; it changes
        nothing but how `torch_weights.export` writes them.
      features_only: no classifier; the logits are None.
      remat: keep only the blocks' inputs for the backward pass.
      sites: where regularizers are applied.
      dtype: of the computation; parameters are float32.
      rngs: its `params` stream draws the initial weights.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        dims: tuple[int, ...],
        patch_size: int = 4,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        stochastic_depth: float = 0.0,
        timm_conv_mlp: bool = False,
        features_only: bool = False,
        remat: bool = False,
        sites: Sites = Sites(),  # noqa: B008 - frozen
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        patch = (patch_size, patch_size)
        self.stem_conv = nnx.Conv(
            in_channels, dims[0], patch, strides=patch, padding="VALID", kernel_init=_weights, dtype=dtype, rngs=rngs
        )
        self.stem_norm = LayerNorm(dims[0], epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        rates = iter(linear_rates(stochastic_depth, sum(depths)))
        self.stages = nnx.List(
            nnx.List(Block(dim, next(rates), sites, dtype, rngs) for _ in range(depth))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.downsamples = nnx.List(Downsample(a, b, sites, dtype, rngs) for a, b in itertools.pairwise(dims))
        self.norm = LayerNorm(dims[-1], epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        head = (
            None if features_only else nnx.Linear(dims[-1], num_classes, kernel_init=_weights, dtype=dtype, rngs=rngs)
        )
        self.head = head
        self.site = Site(sites.features, dims[-1])
        self.remat = remat
        self.timm_conv_mlp = timm_conv_mlp

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b k"] | None, Float[Array, "b d"]]:
        """`(logits, features)`, features being the input of the classifier.

        With `train=True` and stochastic depth, `rngs` must have a `dropout` stream.
        """
        x = self.stem_norm(self.stem_conv(images))
        for index, blocks in enumerate(self.stages):
            if index:
                x = self.downsamples[index - 1](x, train)
            x = run_blocks(blocks, x, train=train, rngs=rngs if train else None, remat=self.remat)
        features = self.site(self.norm(x.mean(axis=(1, 2))), train)
        return None if self.head is None else self.head(features), features
