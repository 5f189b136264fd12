"""Measures of logits and features: arrays in, scalars out."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def correct(logits: Float[Array, "*batch k"], labels: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
    """Whether the largest logit is the label's (top-1), per example."""
    return logits.argmax(axis=-1) == labels


def singular_values(features: Float[Array, "n d"]) -> Float[Array, " min_n_d"]:
    """Singular values of the centred features over sqrt(n - 1), largest first: standard deviations along the
    principal axes, in the features' unit."""
    x = features - features.mean(axis=0, keepdims=True)
    return jnp.linalg.svd(x, compute_uv=False) / jnp.sqrt(max(features.shape[0] - 1, 1))


def effective_rank(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """exp(entropy of p), p the singular values of the centred features over their sum.

    Between 1 and min(n - 1, d); constant features have rank 1 by convention. Roy & Vetterli, "The effective rank",
    EUSIPCO 2007; RankMe (Garrido et al., arXiv 2210.02885) is the same without centring.
    """
    s = singular_values(features)
    p = s / jnp.maximum(s.sum(), jnp.finfo(s.dtype).tiny)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0)))
