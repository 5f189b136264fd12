"""PyTorch's networks: torchvision's and timm's own classes at reduced depth and width.

The CIFAR ResNets are in no library: a module with akamaster's attribute names. Nothing here uses JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


def _import_torchvision() -> Any:
    """`torchvision.models`, also beside a torch for which torchvision's compiled operators do not load."""
    try:
        from torchvision import models
    except RuntimeError:  # they do not: declaring two schemas is all that importing the models asks for
        for name in ("nms", "qnms"):
            _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import models
    return models


# Kept for the life of the process: the schemas go when the object does.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
tv = _import_torchvision()

from timm.models import convnext as timm_convnext  # noqa: E402 - it imports torchvision
from timm.models import vision_transformer as timm_vit  # noqa: E402


class Subsampling(torch.nn.Module):
    """Shortcut A: every second pixel, between as many channels of zeros as there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input at half the resolution and twice the width."""
        half = x[:, :, ::2, ::2]
        zeros = torch.zeros_like(half[:, ::2])
        return torch.cat([zeros, half, zeros], dim=1)


class CifarBlock(torch.nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        stride = 1 if in_dim == dim else 2
        self.conv1 = torch.nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(dim)
        self.conv2 = torch.nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(dim)
        self.shortcut = torch.nn.Identity() if stride == 1 else Subsampling()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class CifarNet(torch.nn.Module):
    """The ResNet of 6 n + 2 layers for 32x32 images."""

    def __init__(self, n: int, num_classes: int = 10):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            torch.nn.Sequential(*(CifarBlock(in_dim if i == 0 else dim, dim) for i in range(n)))
            for in_dim, dim in [(16, 16), (16, 32), (32, 64)]
        )
        self.linear = torch.nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


@dataclass(frozen=True)
class Network:
    """One network: how to make it, and what in it is what."""

    create: Callable[..., torch.nn.Module]
    size: int  # of the images
    head: str  # the classifier's name
    blocks: str  # pattern of the names of its residual blocks


DEPTHS, DIMS = (1, 1, 1, 1), (16, 24, 32, 40)  # of the stages
_SETTINGS = [tv.convnext.CNBlockConfig(*row) for row in zip(DIMS, (*DIMS[1:], None), DEPTHS, strict=True)]
_VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48}


def _bottleneck_resnet(num_classes: int) -> torch.nn.Module:
    """A quarter as wide as torchvision's constructor makes it: built by its own `_make_layer`."""
    net = tv.ResNet(tv.resnet.Bottleneck, [0, 0, 0, 0], num_classes)
    net.inplanes = 16
    net.conv1, net.bn1 = torch.nn.Conv2d(3, 16, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(16)
    for stage, stride in enumerate((1, 2, 2, 2)):
        layer = net._make_layer(tv.resnet.Bottleneck, 16 * 2**stage, 1, stride)
        setattr(net, f"layer{stage + 1}", layer)
    net.fc = torch.nn.Linear(4 * 128, num_classes)
    return net


RESNET = Network(partial(tv.ResNet, tv.resnet.BasicBlock, list(DEPTHS)), 24, "fc", r"layer\d\.\d")
BOTTLENECK_RESNET = Network(_bottleneck_resnet, 24, "fc", r"layer\d\.\d")
CIFAR_RESNET20 = Network(partial(CifarNet, 3), 16, "linear", r"layer\d\.\d")
CONVNEXT = Network(partial(tv.ConvNeXt, _SETTINGS), 48, "classifier.2", r"features\.[1357]\.\d")
TIMM_CONVNEXT = Network(
    partial(timm_convnext.ConvNeXt, depths=DEPTHS, dims=DIMS, conv_mlp=True), 48, "head.fc", r"stages\.\d\.blocks\.\d"
)
VIT = Network(
    partial(tv.VisionTransformer, **_VIT, mlp_dim=192), 32, "heads.head", r"encoder\.layers\.encoder_layer_\d"
)
TIMM_VIT = Network(
    partial(timm_vit.VisionTransformer, 32, 8, embed_dim=48, depth=2, num_heads=3), 32, "head", r"blocks\.\d"
)


def create(network: Network, seed: int) -> torch.nn.Module:
    """The network with random weights, perturbed."""
    torch.manual_seed(seed)
    return perturbed(network.create(num_classes=10), seed)


def perturbed(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`net` with every parameter and running statistic moved, so that none of them is without effect.

    A layer scale of 1e-6, a head of zeros or a variance of one would hide whatever stands behind it.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.dtype.is_floating_point:
                noise = torch.rand(value.shape, generator=rng)
                is_matrix = value.ndim > 1 and not name.endswith("layer_scale")
                value += (noise - 0.5) / value[0].numel() ** 0.5 if is_matrix else noise
    return net
