"""Models that know nothing of regularizers, as Flax's own documentation writes them; packages' models are imported.

Each takes a regularizer `reg`, by default none, and applies it by hand at the place where a test attaches it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class CNN(nnx.Module):
    """The convolutional network of the NNX tutorial on MNIST, narrower."""

    def __init__(self, *, rngs: nnx.Rngs, reg=lambda h: h):
        self.conv1 = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, kernel_size=(3, 3), rngs=rngs)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(24, 8, rngs=rngs)
        self.linear2 = nnx.Linear(8, 3, rngs=rngs)
        self.reg = reg

    def __call__(self, x):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.reg(self.conv1(x)))))
        x = self.avg_pool(nnx.relu(self.reg(self.conv2(x))))
        return self.linear2(nnx.relu(self.linear1(x.reshape(x.shape[0], -1))))


class Block(nnx.Module):
    """A layer of the guide on transforms; its state is stacked by `vmap` and it runs under `scan`."""

    def __init__(self, dim: int, rngs: nnx.Rngs, reg=lambda h: h):
        self.linear = nnx.Linear(dim, dim, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.reg = reg

    def __call__(self, x):
        return self.reg(x + nnx.gelu(self.norm(self.linear(x))))


class ScannedMLP(nnx.Module):
    """Scan over layers, as in the guide on transforms; with `remat` each layer is computed again."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs, reg=lambda h: h, remat: bool = False):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return Block(dim, rngs, reg)

        self.layers = create(rngs)
        self.remat = remat

    def __call__(self, x):
        layer = nnx.remat(lambda x, block: block(x)) if self.remat else lambda x, block: block(x)
        return nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)


class TransformerBlock(nnx.Module):
    """The block of the NNX tutorial on a small language model; `mask` says which tokens are not padding."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads, dim, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        self.expand = nnx.Linear(dim, 2 * dim, rngs=rngs)
        self.project = nnx.Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, x, mask):
        seen = nnx.combine_masks(nnx.make_causal_mask(mask), nnx.make_attention_mask(mask, mask))
        x = x + self.attention(self.norm1(x), mask=seen)
        return x + self.project(nnx.gelu(self.expand(self.norm2(x))))


class LanguageModel(nnx.Module):
    """Next-token logits of a small Transformer."""

    def __init__(self, vocabulary: int, length: int, dim: int, depth: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, dim, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, length, dim)))
        self.blocks = nnx.List(TransformerBlock(dim, 2, rngs=rngs) for _ in range(depth))
        self.head = nnx.Linear(dim, vocabulary, rngs=rngs)

    def __call__(self, tokens, mask):
        x = self.embed(tokens)
        x = x + jnp.broadcast_to(self.positions[...], x.shape)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


class Encoder1DBlock(nn.Module):
    """The encoder block of Flax's machine translation example, with its output in a dict, as libraries return it."""

    dim: int

    @nn.compact
    def __call__(self, inputs):
        x = inputs + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(inputs))
        y = nn.Dense(self.dim)(nn.gelu(nn.Dense(2 * self.dim)(nn.LayerNorm()(x))))
        return {"hidden": x + y, "pooled": (x + y).mean(axis=1)}


class Encoder(nn.Module):
    """A classifier with one of them."""

    dim: int = 8
    reg: object = None

    @nn.compact
    def __call__(self, x):
        x = Encoder1DBlock(self.dim)(x)["hidden"]
        x = x if self.reg is None else self.reg(x)
        return nn.Dense(3)(x.mean(axis=1))


class Layer(nn.Module):
    """The body of the Linen guide's scan over layers."""

    reg: object = None

    @nn.compact
    def __call__(self, x, _):
        x = x + nn.gelu(nn.Dense(x.shape[-1])(x))
        return (x if self.reg is None else self.reg(x)), None


class ScannedLayers(nn.Module):
    """Scan over layers that are computed again in the backward pass."""

    reg: object = None

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers(self.reg, name="layers")(x, None)[0]
