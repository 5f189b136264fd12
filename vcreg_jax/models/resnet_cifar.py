"""The narrow ResNets for 32x32 images (He et al., arXiv 1512.03385, Section 4.2), channels last.

As in akamaster/pytorch_resnet_cifar10, the PyTorch version that long-tailed CIFAR papers build on.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.models.convolution import Convolution
from vcreg_jax.models.layers import Site, linear_rates, run_blocks
from vcreg_jax.models.resnet import Block, Common, Scope, basic_block
from vcreg_jax.regularizers.sites import Sites

_he_fan_in = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Subsampling(nnx.Module):
    """The shortcut of option A, without parameters: every second pixel, and as many zero channels on both sides."""

    def __init__(self, in_dim: int, out_dim: int, sites: Sites):
        self.pad = (out_dim - in_dim) // 2
        self.site = Site(sites.downsample, out_dim)

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The input, in the shape of the branch."""
        return self.site(jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (self.pad, self.pad))), train)


class CifarResNet(nnx.Module):
    """A ResNet of 6 n + 2 layers for 32x32 images; a call returns `(logits, features)`.

    Three stages of n basic blocks, 16, 32 and 64 times `width` wide. `sites.block` is applied to every block's output,
    after the relu that follows the addition; `sites.downsample` to the output of the two shortcuts that halve the
    resolution.

    Args:
      blocks_per_stage: n.
      width: 1 in the paper; wider ones have that many times the channels everywhere.
      shortcut: where the width changes, "A" subsamples and adds zero channels, "B" learns a 1x1 convolution.
      num_classes: width of the logits.
      in_channels: channels of the images.
      stochastic_depth: drop rate of the last block; earlier blocks' rates grow linearly from 0.
      norm_scope: whose statistics the norms take in training: the whole batch's, or each of k groups'.
      zero_init_residual: the scale of each block's last norm starts at 0, so that the block starts as its shortcut.
      features_only: no classifier; the logits are None.
      remat: keep only the blocks' inputs for the backward pass.
      sites: where regularizers are applied.
      dtype: of the computation; parameters are float32.
      rngs: its `params` stream draws the initial weights.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        *,
        width: int = 1,
        shortcut: Literal["A", "B"] = "A",
        num_classes: int = 10,
        in_channels: int = 3,
        stochastic_depth: float = 0.0,
        norm_scope: Scope = "global",
        zero_init_residual: bool = False,
        features_only: bool = False,
        remat: bool = False,
        sites: Sites = Sites(),  # noqa: B008 - frozen
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if shortcut not in ("A", "B"):
            raise ValueError(
                f'CifarResNet has shortcuts "A" (no parameters) and "B" (1x1 convolutions), got {shortcut!r}.'
            )
        common = Common(sites, dtype, norm_scope, zero_init_residual, _he_fan_in, rngs, Convolution)
        dims = 16 * width, 32 * width, 64 * width
        self.stem_conv = common.conv(in_channels, dims[0], 3, 1)
        self.stem_norm = common.norm(dims[0])
        rates = iter(linear_rates(stochastic_depth, 3 * blocks_per_stage))
        self.stages = nnx.List()
        for stage, dim in enumerate(dims):
            blocks = nnx.List()
            for index in range(blocks_per_stage):
                first = stage > 0 and index == 0
                if first and shortcut == "A":
                    halved = Subsampling(dim // 2, dim, sites)
                    blocks.append(Block((dim // 2, dim, dim), (3, 3), (2, 1), halved, next(rates), common))
                else:
                    stride, in_dim = (2, dim // 2) if first else (1, dim)
                    blocks.append(basic_block(in_dim, dim, stride, next(rates), common))
            self.stages.append(blocks)
        self.head = None if features_only else common.linear(dims[-1], num_classes, _he_fan_in)
        self.site = Site(sites.features, dims[-1])
        self.remat = remat

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b k"] | None, Float[Array, "b d"]]:
        """`(logits, features)`, features being the input of the classifier.

        With `train=True` the norms use the batch's statistics and update their running ones, and stochastic depth
        needs `rngs` with a `dropout` stream.
        """
        x = jax.nn.relu(self.stem_norm(self.stem_conv(images), train))
        for blocks in self.stages:
            x = run_blocks(blocks, x, train=train, rngs=rngs if train else None, remat=self.remat)
        features = self.site(x.mean(axis=(1, 2)), train)
        return None if self.head is None else self.head(features), features
