"""Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929).

One module serves torchvision's base and large, and timm's tiny and small. They compute the same and differ only in
how they are initialised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from vcreg_jax.models.layers import DropPath, Site, linear_rates, run_blocks, torch_default, torch_default_bias
from vcreg_jax.models.lean import LayerNorm, gelu
from vcreg_jax.models.patches import PatchProjection
from vcreg_jax.regularizers.add_gradient import identity
from vcreg_jax.regularizers.sites import Sites

_EPSILON = 1e-6
_zeros = jax.nn.initializers.zeros
_normal = jax.nn.initializers.normal
_glorot = jax.nn.initializers.glorot_uniform()


@dataclass(frozen=True)
class Initializers:
    """How the parameters of a ViT are drawn; position embeddings are N(0, 0.02^2) in both libraries."""

    patch: nnx.Initializer
    patch_bias: Callable[[int], nnx.Initializer]  # of the fan-in
    class_token: nnx.Initializer
    qkv: nnx.Initializer  # of the packed (d, 3 d) kernel
    out: nnx.Initializer
    mlp: nnx.Initializer
    mlp_bias: nnx.Initializer
    head: nnx.Initializer


TORCHVISION = Initializers(
    patch=jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
    patch_bias=lambda fan_in: _zeros,
    class_token=_zeros,
    qkv=_glorot,  # torch's packed projection: with a fan-out of 3 d the bound is sqrt(6 / 4 d)
    out=torch_default,
    mlp=_glorot,
    mlp_bias=_normal(1e-6),
    head=_zeros,
)
TIMM = Initializers(
    patch=torch_default,
    patch_bias=torch_default_bias,
    class_token=_normal(1e-6),
    qkv=_normal(0.02),
    out=_normal(0.02),
    mlp=_normal(0.02),
    mlp_bias=_zeros,
    head=_normal(0.02),
)


class Attention(nnx.Module):
    """Multi-head self-attention with one packed projection to queries, keys and values, heads contiguous in each."""

    def __init__(self, dim: int, num_heads: int, init: Initializers, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(dim, 3 * dim, kernel_init=init.qkv, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(dim, dim, kernel_init=init.out, dtype=dtype, rngs=rngs)
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """out(softmax(q k' / sqrt(head width)) v), the softmax in float32 or wider."""
        b, t, d = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(b, t, 3, self.num_heads, -1), 2, 0)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # Not `jax.nn.dot_product_attention`: its softmax is float32 for float64 too.
        scores = jnp.einsum("bqhc,bkhc->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return self.out(jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(b, t, d))


class Block(nnx.Module):
    """y = x + attention(norm1(x)); y + mlp(norm2(y)), then `sites.block`; each branch with a drop path."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_rate: float,
        *,
        init: Initializers,
        sites: Sites,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        norm = partial(LayerNorm, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        linear = partial(nnx.Linear, kernel_init=init.mlp, bias_init=init.mlp_bias, dtype=dtype, rngs=rngs)
        self.norm1 = norm(dim)
        self.attention = Attention(dim, num_heads, init, dtype, rngs)
        self.norm2 = norm(dim)
        self.expand = linear(dim, 4 * dim)
        self.project = linear(4 * dim, dim)
        self.drop_path = DropPath(drop_rate)
        self.site = Site(sites.block, dim)

    def __call__(self, x: Float[Array, "b t d"], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b t d"]:
        """The block's output, of the shape of its input."""
        x = x + self.drop_path(self.attention(self.norm1(x)), rngs)
        y = self.project(gelu(self.expand(self.norm2(x))))
        return self.site(x + self.drop_path(y, rngs), train)


class ViT(nnx.Module):
    """A Vision Transformer classifier on the class token; a call returns `(logits, features)`.

    `sites.block` is applied to every block's output, all tokens being samples. There is no downsampling layer.

    Args:
      dim: width of the tokens.
      depth: number of blocks.
      num_heads: attention heads; they divide `dim`.
      patch_size: side of the patches.
      init: how parameters are drawn.
      image_size: side of the images; a multiple of `patch_size`.
      num_classes: width of the logits.
      in_channels: channels of the images.
      stochastic_depth: drop rate of the last block; earlier blocks' rates grow linearly from 0.
      features_only: no classifier; the logits are None.
      remat: keep only the blocks' inputs for the backward pass.
      sites: where regularizers are applied.
      dtype: of the computation; parameters are float32.
      rngs: its `params` stream draws the initial weights.

    Raises:
      ValueError: for an `image_size` that patches do not tile, for `sites.downsample`, and when called on images of
        another size.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        init: Initializers,
        *,
        image_size: int = 224,
        num_classes: int = 1000,
        in_channels: int = 3,
        stochastic_depth: float = 0.0,
        features_only: bool = False,
        remat: bool = False,
        sites: Sites = Sites(),  # noqa: B008 - frozen
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(image_size, patch_size, sites)
        patch = (patch_size, patch_size)
        self.patch_conv = PatchProjection(
            in_channels,
            dim,
            patch,
            strides=patch,
            padding="VALID",
            kernel_init=init.patch,
            bias_init=init.patch_bias(in_channels * patch_size**2),
            dtype=dtype,
            rngs=rngs,
        )
        tokens = (image_size // patch_size) ** 2 + 1
        self.class_token = nnx.Param(init.class_token(rngs.params(), (1, 1, dim)))
        self.positions = nnx.Param(_normal(0.02)(rngs.params(), (1, tokens, dim)))
        rates = linear_rates(stochastic_depth, depth)
        self.blocks = nnx.List(
            Block(dim, num_heads, rate, init=init, sites=sites, dtype=dtype, rngs=rngs) for rate in rates
        )
        self.norm = LayerNorm(dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.head = (
            None if features_only else nnx.Linear(dim, num_classes, kernel_init=init.head, dtype=dtype, rngs=rngs)
        )
        self.site = Site(sites.features, dim)
        self.remat = remat
        self.image_size = image_size

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b k"] | None, Float[Array, "b d"]]:
        """`(logits, features)`, features being the input of the classifier.

        With `train=True` and stochastic depth, `rngs` must have a `dropout` stream.
        """
        side = self.image_size
        if images.shape[1:3] != (side, side):
            raise ValueError(
                f"This ViT takes images of {side}x{side}, got {images.shape[1]}x{images.shape[2]}. "
                "Resize them, or create it with another image_size."
            )
        x = self.patch_conv(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1)
        x = x + jnp.broadcast_to(self.positions[...].astype(x.dtype), x.shape)
        x = run_blocks(self.blocks, x, train=train, rngs=rngs if train else None, remat=self.remat)
        features = self.site(self.norm(x[:, 0]), train)
        return None if self.head is None else self.head(features), features


def _check(image_size: int, patch_size: int, sites: Sites) -> None:
    if image_size < patch_size or image_size % patch_size:
        below = image_size // patch_size * patch_size
        nearest = " and ".join(str(size) for size in (below, below + patch_size) if size)
        raise ValueError(
            f"image_size must be a multiple of the patch size {patch_size}, got {image_size}; nearest: {nearest}."
        )
    if sites.downsample is not identity:
        raise ValueError(
            "A ViT has no downsampling layers, so Sites(downsample=...) would do nothing. Use Sites(block=...)."
        )
