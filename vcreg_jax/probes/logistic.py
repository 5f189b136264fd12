"""Multinomial logistic regression's sum of cross entropies: the problem in coordinates to solve it in, and values.

Shapes: n examples, d features, k classes, p points at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

BLOCK_LOGITS = 2**21  # logits in memory at once

dot = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # accelerators would otherwise round operands


@functools.partial(jax.jit, static_argnames="num_classes")
def class_counts(labels: Array, mask: Array, num_classes: int) -> Array:
    """How many unmasked examples each class has."""
    return jnp.zeros(num_classes, int).at[jnp.where(mask, labels, 0)].add(mask)


class Problem(NamedTuple):
    """Blocks of rows of [x 1], x centred and rotated to the principal axes, in which x'x is diagonal."""

    x: Array  # blocks rows d+1
    labels: Array  # blocks rows
    weight: Array  # blocks rows; 1, or 0 for padding
    absent: Array  # k; classes without examples
    eigenvalues: Array  # d+1; the diagonal of [x 1]'[x 1]
    basis: Array  # features d; principal axes
    mean: Array  # features


class Value(NamedTuple):
    """The sum of cross entropies at one point per lane."""

    loss: Array  # p
    gradient: Array  # p k d+1
    residual: Array  # p; |r|^2
    curvature: Array  # p; mean p (1 - p), the second derivative by a logit


def make_problem(features: Array, labels: Array, mask: Array, num_classes: int, columns: int) -> Problem:
    """Of unmasked rows, to be evaluated at points of `columns` logits together.

    Exact changes of variable: the bias absorbs the centring, and |W| is the same in any orthonormal basis.

    With fewer rows than features the optimum lies in the span of the rows, whose basis QR gives.
    """
    n, d = features.shape
    weight, labels = mask.astype(features.dtype), jnp.where(mask, labels, 0)
    mean = jnp.where(mask[:, None], features, 0).sum(axis=0) / weight.sum()
    x = jnp.where(mask[:, None], features - mean[None], 0)
    basis = jnp.linalg.qr(x.T)[0] if n < d else jnp.eye(d, dtype=x.dtype)
    reduced = dot("nd,de->ne", x, basis) if n < d else x
    basis = dot("de,ef->df", basis, jnp.linalg.eigh(dot("nd,ne->de", reduced, reduced))[1])
    x = jnp.concatenate([dot("nd,de->ne", x, basis), weight[:, None]], axis=1)
    blocks = -(-n * columns // BLOCK_LOGITS)
    rows = n if blocks == 1 else -(-n // (128 * blocks)) * 128  # a multiple of what rows are sharded over

    def in_blocks(a: Array) -> Array:
        # Every block takes rows from everywhere, so that a block of sharded rows is sharded as well.
        a = jnp.pad(a, [(0, blocks * rows - n)] + [(0, 0)] * (a.ndim - 1))
        return jnp.moveaxis(a.reshape(rows, blocks, *a.shape[1:]), 1, 0)

    absent = class_counts(labels, mask, num_classes) == 0
    return Problem(in_blocks(x), in_blocks(labels), in_blocks(weight), absent, (x * x).sum(axis=0), basis, mean)


def evaluate(problem: Problem, w: Array) -> Value:
    """Loss and derivatives by the margins z - z_own, to full relative precision even where every example is right."""
    k = w.shape[1]

    def add_block(total, block):
        x, labels, weight = block
        z = dot("pkd,nd->pkn", w, x)
        own = (labels[None, :] == jnp.arange(k)[:, None])[None]
        margins = z - jnp.where(own, z, 0).sum(axis=1, keepdims=True)
        margins = jnp.where(own | problem.absent[None, :, None], -jnp.inf, margins)
        top = jnp.maximum(margins.max(axis=1, keepdims=True), 0)
        others = jnp.exp(margins - top)
        sum_others = others.sum(axis=1, keepdims=True)
        loss = (top + jnp.log1p(sum_others + jnp.expm1(-top)))[:, 0]  # log(1 + sum exp margins)
        scale = weight[None, None] / (sum_others + jnp.exp(-top))
        r = jnp.where(own, -sum_others, others) * scale
        residual = (r * r).sum(axis=(1, 2))
        curvature = (
            2 * (sum_others * scale).sum(axis=(1, 2)) - residual
        ) / k  # sum |r| (1 - |r|), without a pass for it
        block = Value(dot("pn,n->p", loss, weight), dot("pkn,nd->pkd", r, x), residual, curvature)
        return jax.tree.map(jnp.add, total, block), None

    zeros = jnp.zeros(len(w), w.dtype)
    blocks = (problem.x, problem.labels, problem.weight)
    total, _ = lax.scan(add_block, Value(zeros, jnp.zeros_like(w), zeros, zeros), blocks)
    return total._replace(curvature=total.curvature / problem.weight.sum())
