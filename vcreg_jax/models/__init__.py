"""The models of the paper by name, as in `vc.models.create("convnext_atto", num_classes=10, rngs=nnx.Rngs(0))`."""

import difflib
import inspect
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.mlp import MLP
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import TIMM, TORCHVISION, ViT
from vcreg_jax.regularizers.sites import Sites

_MODELS: dict[str, partial[nnx.Module]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2), False),
    "resnet34": partial(ResNet, (3, 4, 6, 3), False),
    "resnet50": partial(ResNet, (3, 4, 6, 3), True),
    "resnet101": partial(ResNet, (3, 4, 23, 3), True),
    "resnet152": partial(ResNet, (3, 8, 36, 3), True),
    "resnet8": partial(CifarResNet, 1),  # this and the next seven for 32x32 images
    "resnet8_x2": partial(CifarResNet, 1, width=2),
    "resnet20": partial(CifarResNet, 3),
    "resnet20_x2": partial(CifarResNet, 3, width=2),
    "resnet20_x4": partial(CifarResNet, 3, width=4),
    "resnet32": partial(CifarResNet, 5),
    "resnet44": partial(CifarResNet, 7),
    "resnet56": partial(CifarResNet, 9),
    "convnext_digits": partial(ConvNeXt, (2, 2), (32, 64), 2),  # for 8x8 images
    "convnext_digits_x2": partial(ConvNeXt, (2, 2), (64, 128), 2),
    "convnext_cifar": partial(ConvNeXt, (2, 2, 2), (24, 48, 96), 4),  # for 32x32 images on a CPU
    "convnext_atto": partial(ConvNeXt, (2, 2, 6, 2), (40, 80, 160, 320), timm_conv_mlp=True),
    "convnext_femto": partial(ConvNeXt, (2, 2, 6, 2), (48, 96, 192, 384), timm_conv_mlp=True),
    "convnext_pico": partial(ConvNeXt, (2, 2, 6, 2), (64, 128, 256, 512), timm_conv_mlp=True),
    "convnext_nano": partial(ConvNeXt, (2, 2, 8, 2), (80, 160, 320, 640), timm_conv_mlp=True),
    "convnext_tiny": partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, (3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, (3, 3, 27, 3), (128, 256, 512, 1024)),
    "vit_b_16": partial(ViT, 768, 12, 12, 16, TORCHVISION),
    "vit_b_32": partial(ViT, 768, 12, 12, 32, TORCHVISION),
    "vit_l_16": partial(ViT, 1024, 24, 16, 16, TORCHVISION),
    "vit_l_32": partial(ViT, 1024, 24, 16, 32, TORCHVISION),
    "vit_tiny_patch16_224": partial(ViT, 192, 12, 3, 16, TIMM),
    "vit_small_patch16_224": partial(ViT, 384, 12, 6, 16, TIMM),
    "vit_small_patch32_224": partial(ViT, 384, 12, 6, 32, TIMM),
    "mlp6_512": partial(MLP, 6, 512),  # six layers; the hidden ones are so wide
    "mlp6_1024": partial(MLP, 6, 1024),
}


def names() -> list[str]:
    """List every name that `create` takes.

    Returns:
      The names, a kind of network after the other.

    Examples:
      >>> import vcreg_jax as vc
      >>> "resnet50" in vc.models.names()
      True
    """
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
    """Create the model called `name`, freshly initialised.

    Args:
      name: one of `names()`.
      num_classes: width of the logits.
      sites: where regularizers are applied; by default nowhere.
      rngs: its `params` stream draws the initial weights.
      dtype: of the computation; parameters are float32.
      **options: further arguments of the model's class, such as `in_channels`, `stochastic_depth`, `remat`,
        `features_only`, `norm_scope` and `zero_init_residual` (ResNets), `image_size` (ViTs, MLPs) or `shortcut` (CIFAR
        ResNets).

    Returns:
      A module. Its call takes images `(batch, height, width, channels)` and returns `(logits, features)`: logits
      `(batch, num_classes)`, features `(batch, d)`, the input of the classifier. `train=True` selects training's mode.

    Raises:
      ValueError: for an unknown name or option, with those that are known.

    Examples:
      >>> import jax.numpy as jnp
      >>> import vcreg_jax as vc
      >>> from flax import nnx
      >>> model = vc.models.create("resnet20", num_classes=10, rngs=nnx.Rngs(0))
      >>> logits, features = model(jnp.ones((2, 32, 32, 3)))
      >>> logits.shape, features.shape
      ((2, 10), (2, 64))
    """
    if name not in _MODELS:
        raise ValueError(f"Unknown model {name!r}.{_suggestion(name, names())} Known: {', '.join(names())}.")
    model = _MODELS[name]
    known = [key for key, p in inspect.signature(model.func.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            hint = _suggestion(option, known)
            raise ValueError(f"{name} has no option {option!r}.{hint} It takes {', '.join(known)}.")
    return model(num_classes=num_classes, sites=sites, rngs=rngs, dtype=dtype, **options)


def _suggestion(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
