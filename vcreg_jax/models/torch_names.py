"""What PyTorch calls and how it lays out the parameters of these models.

One function per naming maps the path of our parameter to the key there. Reading and writing files both go from our
path to that key, so there is no second table to keep in step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.mlp import MLP
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import ViT

Path = tuple[Any, ...]  # of a parameter in our model, such as ("stages", 0, 1, "norms", 0, "scale")

_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _resnet(path: Path, shortcut: str = "downsample", head: str = "fc") -> str:
    match path:
        case ("stem_conv", leaf):
            return f"conv1.{_LEAF[leaf]}"
        case ("stem_norm", leaf):
            return f"bn1.{_LEAF[leaf]}"
        case ("stages", s, b, "convs", i, leaf):
            return f"layer{s + 1}.{b}.conv{i + 1}.{_LEAF[leaf]}"
        case ("stages", s, b, "norms", i, leaf):
            return f"layer{s + 1}.{b}.bn{i + 1}.{_LEAF[leaf]}"
        case ("stages", s, b, "shortcut", layer, leaf):
            return f"layer{s + 1}.{b}.{shortcut}.{('conv', 'norm').index(layer)}.{_LEAF[leaf]}"
        case ("head", leaf):
            return f"{head}.{_LEAF[leaf]}"
    raise KeyError(path)


def _akamaster(path: Path) -> str:
    return _resnet(path, shortcut="shortcut", head="linear")


def _torchvision_convnext(path: Path) -> str:
    in_block = {"depthwise": 0, "norm": 2, "expand": 3, "project": 5}
    match path:
        case ("stem_conv", leaf):
            return f"features.0.0.{_LEAF[leaf]}"
        case ("stem_norm", leaf):
            return f"features.0.1.{_LEAF[leaf]}"
        case ("stages", s, b, "layer_scale"):
            return f"features.{2 * s + 1}.{b}.layer_scale"
        case ("stages", s, b, layer, leaf):
            return f"features.{2 * s + 1}.{b}.block.{in_block[layer]}.{_LEAF[leaf]}"
        case ("downsamples", s, layer, leaf):
            return f"features.{2 * s + 2}.{('norm', 'conv').index(layer)}.{_LEAF[leaf]}"
        case ("norm", leaf):
            return f"classifier.0.{_LEAF[leaf]}"
        case ("head", leaf):
            return f"classifier.2.{_LEAF[leaf]}"
    raise KeyError(path)


def _timm_convnext(path: Path) -> str:
    in_block = {"depthwise": "conv_dw", "norm": "norm", "expand": "mlp.fc1", "project": "mlp.fc2"}
    match path:
        case ("stem_conv", leaf):
            return f"stem.0.{_LEAF[leaf]}"
        case ("stem_norm", leaf):
            return f"stem.1.{_LEAF[leaf]}"
        case ("stages", s, b, "layer_scale"):
            return f"stages.{s}.blocks.{b}.gamma"
        case ("stages", s, b, layer, leaf):
            return f"stages.{s}.blocks.{b}.{in_block[layer]}.{_LEAF[leaf]}"
        case ("downsamples", s, layer, leaf):
            return f"stages.{s + 1}.downsample.{('norm', 'conv').index(layer)}.{_LEAF[leaf]}"
        case ("norm", leaf):
            return f"head.norm.{_LEAF[leaf]}"
        case ("head", leaf):
            return f"head.fc.{_LEAF[leaf]}"
    raise KeyError(path)


def _torchvision_vit(path: Path) -> str:
    in_block = {"norm1": "ln_1", "norm2": "ln_2", "expand": "mlp.0", "project": "mlp.3"}
    match path:
        case ("class_token",):
            return "class_token"
        case ("positions",):
            return "encoder.pos_embedding"
        case ("patch_conv", leaf):
            return f"conv_proj.{_LEAF[leaf]}"
        case ("blocks", b, "attention", "qkv", leaf):
            return f"encoder.layers.encoder_layer_{b}.self_attention.in_proj_{_LEAF[leaf]}"
        case ("blocks", b, "attention", "out", leaf):
            return f"encoder.layers.encoder_layer_{b}.self_attention.out_proj.{_LEAF[leaf]}"
        case ("blocks", b, layer, leaf):
            return f"encoder.layers.encoder_layer_{b}.{in_block[layer]}.{_LEAF[leaf]}"
        case ("norm", leaf):
            return f"encoder.ln.{_LEAF[leaf]}"
        case ("head", leaf):
            return f"heads.head.{_LEAF[leaf]}"
    raise KeyError(path)


def _timm_vit(path: Path) -> str:
    in_block = {"norm1": "norm1", "norm2": "norm2", "expand": "mlp.fc1", "project": "mlp.fc2"}
    match path:
        case ("class_token",):
            return "cls_token"
        case ("positions",):
            return "pos_embed"
        case ("patch_conv", leaf):
            return f"patch_embed.proj.{_LEAF[leaf]}"
        case ("blocks", b, "attention", layer, leaf):
            return f"blocks.{b}.attn.{'qkv' if layer == 'qkv' else 'proj'}.{_LEAF[leaf]}"
        case ("blocks", b, layer, leaf):
            return f"blocks.{b}.{in_block[layer]}.{_LEAF[leaf]}"
        case (("norm" | "head") as layer, leaf):
            return f"{layer}.{_LEAF[leaf]}"
    raise KeyError(path)


def _mlp(path: Path) -> str:
    match path:
        case ("patch_conv", leaf):
            return f"stem.{_LEAF[leaf]}"
        case ("layers", i, "linear", leaf):
            return f"layers.{i}.{_LEAF[leaf]}"
        case ("head", leaf):
            return f"head.{_LEAF[leaf]}"
    raise KeyError(path)


# What each kind of model is called where; the first is what `export` writes unless told otherwise.
NAMINGS: dict[type[nnx.Module], dict[str, Callable[[Path], str]]] = {
    ResNet: {"torchvision": _resnet, "timm": _resnet},
    CifarResNet: {"akamaster": _akamaster},
    ConvNeXt: {"torchvision": _torchvision_convnext, "timm": _timm_convnext},
    ViT: {"torchvision": _torchvision_vit, "timm": _timm_vit},
    MLP: {"ours": _mlp},  # a torch `Conv2d(channels, width, image_size)`, then `Linear`s
}

# Keys that only one kind of file has, for telling a user what a file is.
KINDS = (
    ("encoder.layers.encoder_layer_0.ln_1.weight", "ViT with torchvision's names"),
    ("blocks.0.attn.qkv.weight", "ViT with timm's names"),
    ("features.1.0.layer_scale", "ConvNeXt with torchvision's names"),
    ("stages.0.blocks.0.conv_dw.weight", "ConvNeXt with timm's names"),
    ("layer4.0.conv1.weight", "ResNet"),
    ("layer3.0.conv1.weight", "CifarResNet"),
    ("layers.0.weight", "MLP"),
)

HEADS = (
    "fc.",
    "linear.",
    "classifier.2.",
    "head.fc.",
    "head.weight",
    "head.bias",
    "heads.",
)  # how the classifier's keys begin


def from_torch(path: Path, value: np.ndarray) -> np.ndarray:
    """PyTorch's array of the parameter at `path` in our layout: linear (in, out), convolution (h, w, in, out)."""
    if path[-1] == "layer_scale":
        return value.reshape(-1)
    if path[-1] != "kernel":
        return value
    is_conv = path[-2] in ("stem_conv", "patch_conv", "conv", "depthwise") or "convs" in path
    if is_conv and value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 4 and value.shape[2:] == (1, 1):  # timm's small ConvNeXts
        value = value[:, :, 0, 0]
    return value.T


def to_torch(path: Path, value: np.ndarray, naming: str, model: nnx.Module) -> np.ndarray:
    """The inverse of `from_torch`, in the shape that `naming` has for `model`."""
    if path[-1] == "layer_scale":
        return value[:, None, None] if naming == "torchvision" else value
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    as_conv = naming == "timm" and getattr(model, "timm_conv_mlp", False) and path[-2] in ("expand", "project")
    return value.T[:, :, None, None] if as_conv else value.T
