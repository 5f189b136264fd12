"""The models of the paper by name, as in `vc.models.create("convnext_atto", num_classes=10, rngs=nnx.Rngs(0))`."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.regularizers import Sites

_MODELS: dict[str, Callable[..., nnx.Module]] = {
    "convnext_digits": partial(ConvNeXt, (2, 2), (32, 64), 2),  # for 8x8 images
    "convnext_atto": partial(ConvNeXt, (2, 2, 6, 2), (40, 80, 160, 320)),
    "convnext_femto": partial(ConvNeXt, (2, 2, 6, 2), (48, 96, 192, 384)),
    "convnext_pico": partial(ConvNeXt, (2, 2, 6, 2), (64, 128, 256, 512)),
    "convnext_nano": partial(ConvNeXt, (2, 2, 8, 2), (80, 160, 320, 640)),
    "convnext_tiny": partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, (3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, (3, 3, 27, 3), (128, 256, 512, 1024)),
}


def names() -> list[str]:
    """Every name that `create` takes."""
    return list(_MODELS)


def create(
    name: str,
    *,
    num_classes: int = 1000,
    sites: Sites = Sites(),  # noqa: B008 - frozen
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> nnx.Module:
    """The model called `name`, freshly initialised; a call returns `(logits, features)`.

    Args:
      name: one of `names()`.
      num_classes: width of the logits.
      sites: where regularizers are applied; by default nowhere.
      rngs: its `params` stream draws the initial weights.
      dtype: of the computation; parameters are float32.
      **options: further arguments of the model's class, such as `in_channels` or `stochastic_depth`.

    Raises:
      ValueError: for an unknown name, with the names that are known.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown model {name!r}.{hint} Known: {', '.join(_MODELS)}.")
    return _MODELS[name](num_classes=num_classes, sites=sites, rngs=rngs, dtype=dtype, **options)
