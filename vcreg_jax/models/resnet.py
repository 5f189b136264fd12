"""ResNet (He et al., "Deep residual learning", arXiv 1512.03385), channels last.

Torchvision's, the "V1.5" whose bottlenecks stride in their 3x3 convolution. The narrow ones for 32x32 images are
in `resnet_cifar.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.models.layers import (
    BatchNorm,
    DropPath,
    Site,
    linear_rates,
    run_blocks,
    torch_default,
    torch_default_bias,
)
from vcreg_jax.regularizers.add_gradient import identity
from vcreg_jax.regularizers.sites import Sites

_he_fan_out = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Scope = Literal["global"] | int


@dataclass(frozen=True)
class Common:
    """What all layers of one network share."""

    sites: Sites
    dtype: DTypeLike
    norm_scope: Scope
    zero_init_residual: bool
    kernel_init: nnx.Initializer
    rngs: nnx.Rngs
    conv_class: type[nnx.Conv] = nnx.Conv

    def conv(self, in_dim: int, out_dim: int, kernel: int, stride: int) -> nnx.Conv:
        """A convolution without bias that keeps the size, but for its stride."""
        # Explicit padding: "SAME" pads strided convolutions on the other side than torch does.
        size, pad = (kernel, kernel), kernel // 2
        return self.conv_class(
            in_dim,
            out_dim,
            size,
            strides=(stride, stride),
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def norm(self, dim: int) -> BatchNorm:
        """A batch norm."""
        return BatchNorm(dim, scope=self.norm_scope, dtype=self.dtype)

    def linear(self, in_dim: int, out_dim: int, kernel_init: nnx.Initializer) -> nnx.Linear:
        """A linear layer with torch's default bias."""
        bias_init = torch_default_bias(in_dim)
        return nnx.Linear(
            in_dim, out_dim, kernel_init=kernel_init, bias_init=bias_init, dtype=self.dtype, rngs=self.rngs
        )


class Projection(nnx.Module):
    """The shortcut of option B: a 1x1 convolution and a norm; a regularizer follows where it downsamples."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, common: Common):
        self.conv = common.conv(in_dim, out_dim, 1, stride)
        self.norm = common.norm(out_dim)
        self.site = Site(common.sites.downsample if stride > 1 else identity, out_dim)

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 c2"]:
        """The input, in the shape of the branch."""
        return self.site(self.norm(self.conv(x), train), train)


class Block(nnx.Module):
    """relu(drop_path(convolutions(x)) + shortcut(x)), regularized.

    A norm follows each convolution, and a relu each but the last.
    """

    def __init__(
        self,
        dims: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        shortcut: nnx.Module | None,
        drop_rate: float,
        common: Common,
    ):
        shapes = zip(dims[:-1], dims[1:], kernels, strides, strict=True)
        self.convs = nnx.List(common.conv(*shape) for shape in shapes)
        self.norms = nnx.List(common.norm(dim) for dim in dims[1:])
        if common.zero_init_residual:
            self.norms[-1].scale[...] = jnp.zeros(dims[-1])
        self.shortcut = shortcut
        self.drop_path = DropPath(drop_rate)
        self.site = Site(common.sites.block, dims[-1])

    def __call__(self, x: Float[Array, "b h w c"], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        """The block's output."""
        y = self.norms[0](self.convs[0](x), train)
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            y = norm(conv(jax.nn.relu(y)), train)
        shortcut = x if self.shortcut is None else self.shortcut(x, train)
        return self.site(jax.nn.relu(self.drop_path(y, rngs) + shortcut), train)


def basic_block(in_dim: int, dim: int, stride: int, drop_rate: float, common: Common) -> Block:
    """Two 3x3 convolutions, the first with the stride; a projection where the shapes differ."""
    shortcut = Projection(in_dim, dim, stride, common) if stride > 1 or in_dim != dim else None
    return Block((in_dim, dim, dim), (3, 3), (stride, 1), shortcut, drop_rate, common)


def bottleneck_block(in_dim: int, dim: int, stride: int, drop_rate: float, common: Common) -> Block:
    """1x1, 3x3 and 1x1 convolutions, the middle one with the stride, the last four times as wide."""
    shortcut = Projection(in_dim, 4 * dim, stride, common) if stride > 1 or in_dim != 4 * dim else None
    return Block((in_dim, dim, dim, 4 * dim), (1, 3, 1), (1, stride, 1), shortcut, drop_rate, common)


class ResNet(nnx.Module):
    """Torchvision's ResNet; a call returns `(logits, features)`.

    `sites.block` is applied to every block's output, after the relu that follows the addition.
    `sites.downsample` is applied to the output of the projection shortcuts that halve the resolution between
    stages (torchvision's `layer{2,3,4}.0.downsample`), the layers of this network that do nothing but downsample.

    Args:
      depths: blocks in each stage.
      bottleneck: 1x1, 3x3, 1x1 convolutions in each block with four times as wide an output, not two of 3x3.
      num_classes: width of the logits.
      in_channels: channels of the images.
      width: channels of the first stage's 3x3 convolutions; they double from stage to stage.
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
        depths: tuple[int, ...],
        bottleneck: bool,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        stochastic_depth: float = 0.0,
        norm_scope: Scope = "global",
        zero_init_residual: bool = False,
        features_only: bool = False,
        remat: bool = False,
        sites: Sites = Sites(),  # noqa: B008 - frozen
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = Common(sites, dtype, norm_scope, zero_init_residual, _he_fan_out, rngs)
        self.stem_conv = common.conv(in_channels, width, 7, 2)
        self.stem_norm = common.norm(width)
        rates = iter(linear_rates(stochastic_depth, sum(depths)))
        dim = width
        self.stages = nnx.List()
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            blocks = nnx.List()
            for index in range(depth):
                stride = 2 if stage and not index else 1
                block = bottleneck_block if bottleneck else basic_block
                blocks.append(block(dim, inner, stride, next(rates), common))
                dim = 4 * inner if bottleneck else inner
            self.stages.append(blocks)
        self.head = None if features_only else common.linear(dim, num_classes, torch_default)
        self.site = Site(sites.features, dim)
        self.remat = remat

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b k"] | None, Float[Array, "b d"]]:
        """`(logits, features)`, features being the input of the classifier.

        With `train=True` the norms use the batch's statistics and update their running ones, and stochastic depth
        needs `rngs` with a `dropout` stream.
        """
        x = jax.nn.relu(self.stem_norm(self.stem_conv(images), train))
        border = ((0, 0), (1, 1), (1, 1), (0, 0))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)
        for blocks in self.stages:
            x = run_blocks(blocks, x, train=train, rngs=rngs if train else None, remat=self.remat)
        features = self.site(x.mean(axis=(1, 2)), train)
        return None if self.head is None else self.head(features), features
