"""PyTorch's side of the models' tests: each kind of network at reduced depth and width, and what it computes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from flax import nnx
from timm.models import convnext as timm_convnext
from timm.models import vision_transformer as timm_vit
from torchvision import models as tv
from torchvision.models.convnext import CNBlockConfig

from train.interop.crosscheck.torch_networks import perturbed
from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import TIMM, TORCHVISION, ViT


class Subsampling(torch.nn.Module):
    """Every second pixel, between as many channels of zeros as there are."""

    def forward(self, x):
        half = x[:, :, ::2, ::2]
        zeros = torch.zeros_like(half[:, ::2])
        return torch.cat([zeros, half, zeros], dim=1)


class CifarBlock(torch.nn.Module):
    """Two 3x3 convolutions and a shortcut, attributes named as in akamaster's files."""

    def __init__(self, in_dim, dim, option):
        super().__init__()
        stride = 1 if in_dim == dim else 2
        self.conv1 = torch.nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(dim)
        self.conv2 = torch.nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(dim)
        self.shortcut = torch.nn.Sequential()
        if stride == 2 and option == "A":
            self.shortcut = Subsampling()
        elif stride == 2:
            projection = torch.nn.Conv2d(in_dim, dim, 1, stride, bias=False)
            self.shortcut = torch.nn.Sequential(projection, torch.nn.BatchNorm2d(dim))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class CifarNet(torch.nn.Module):
    """The ResNet of 6 n + 2 layers for 32x32 images, initialised as akamaster does."""

    def __init__(self, n, option="A", num_classes=10, in_channels=3, width=1):
        super().__init__()
        small, middle, large = (width * dim for dim in (16, 32, 64))
        self.conv1 = torch.nn.Conv2d(in_channels, small, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(small)
        self.layer1, self.layer2, self.layer3 = (
            torch.nn.Sequential(*(CifarBlock(in_dim if i == 0 else dim, dim, option) for i in range(n)))
            for in_dim, dim in [(small, small), (small, middle), (middle, large)]
        )
        self.linear = torch.nn.Linear(large, num_classes)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


@dataclass(frozen=True)
class Family:
    """One kind of network, there and here."""

    theirs: Callable[..., torch.nn.Module]
    ours: Callable[..., nnx.Module]
    size: int  # of the images
    head: str  # the classifier's name there
    blocks: str  # pattern of the modules there whose outputs `sites.block` is to see
    downsamples: str = ""  # and `sites.downsample`
    naming: str = "torchvision"
    channels: int = 3
    train_differs: bool = False  # from evaluation, by the statistics of batch norms


_DEPTHS, _DIMS = (1, 1, 1, 1), (16, 24, 32, 40)
_SETTINGS = [CNBlockConfig(*row) for row in zip(_DIMS, (*_DIMS[1:], None), _DEPTHS, strict=True)]
_PROJECTIONS = r"layer[234]\.0\.downsample"

FAMILIES = {
    "resnet of basic blocks": Family(
        partial(tv.ResNet, tv.resnet.BasicBlock, list(_DEPTHS)),
        partial(ResNet, _DEPTHS, False),
        size=40,
        head="fc",
        blocks=r"layer\d\.\d",
        downsamples=_PROJECTIONS,
        train_differs=True,
    ),
    "resnet of bottlenecks": Family(
        partial(tv.ResNet, tv.resnet.Bottleneck, list(_DEPTHS)),
        partial(ResNet, _DEPTHS, True),
        size=33,
        head="fc",
        blocks=r"layer\d\.\d",
        downsamples=_PROJECTIONS,
        train_differs=True,
    ),
    "CIFAR resnet, option A": Family(
        partial(CifarNet, 2),
        partial(CifarResNet, 2),
        size=32,
        head="linear",
        blocks=r"layer\d\.\d",
        downsamples=r"layer[23]\.0\.shortcut",
        naming="akamaster",
        train_differs=True,
    ),
    "CIFAR resnet, option B, 4 channels": Family(
        partial(CifarNet, 1, "B", in_channels=4, width=2),
        partial(CifarResNet, 1, shortcut="B", in_channels=4, width=2),
        size=32,
        head="linear",
        blocks=r"layer\d\.\d",
        downsamples=r"layer[23]\.0\.shortcut",
        naming="akamaster",
        train_differs=True,
        channels=4,
    ),
    "torchvision convnext": Family(
        partial(tv.ConvNeXt, _SETTINGS),
        partial(ConvNeXt, _DEPTHS, _DIMS),
        size=88,
        head="classifier.2",
        blocks=r"features\.[1357]\.\d",
        downsamples=r"features\.[246]",
    ),
    "timm convnext, 1 channel": Family(
        partial(timm_convnext.ConvNeXt, depths=_DEPTHS, dims=_DIMS, conv_mlp=True, in_chans=1),
        partial(ConvNeXt, _DEPTHS, _DIMS, timm_conv_mlp=True, in_channels=1),
        size=112,
        head="head.fc",
        blocks=r"stages\.\d\.blocks\.\d",
        downsamples=r"stages\.[123]\.downsample",
        naming="timm",
        channels=1,
    ),
    "torchvision vit": Family(
        partial(
            tv.VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192
        ),
        partial(ViT, 48, 2, 3, 8, TORCHVISION, image_size=32),
        size=32,
        head="heads.head",
        blocks=r"encoder\.layers\.encoder_layer_\d",
    ),
    "timm vit, 1 channel": Family(
        partial(timm_vit.VisionTransformer, 32, 8, 1, embed_dim=48, depth=2, num_heads=3),
        partial(ViT, 48, 2, 3, 8, TIMM, image_size=32, in_channels=1),
        size=32,
        head="head",
        blocks=r"blocks\.\d",
        naming="timm",
        channels=1,
    ),
}


def network(family: Family, num_classes: int = 10, seed: int = 0) -> torch.nn.Module:
    """`family`'s network with random weights."""
    torch.manual_seed(seed)
    return perturbed(family.theirs(num_classes=num_classes), seed)


def batch(family: Family, n: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images, channels last, and labels of 10 classes."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, family.size, family.size, family.channels)).astype(np.float32)
    return images, rng.integers(0, 10, n)


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def outputs(net: torch.nn.Module, pattern: str, images: np.ndarray) -> list[np.ndarray]:
    """What the modules whose names match `pattern` put out in one forward pass, in order, channels last."""
    seen: list[np.ndarray] = []

    def keep(_module, _inputs, value):
        value = value.detach().numpy().copy()  # later layers may work in place
        seen.append(value.transpose(0, 2, 3, 1) if value.ndim == 4 else value)

    modules = [module for name, module in net.named_modules() if re.fullmatch(pattern, name)]
    hooks = [module.register_forward_hook(keep) for module in modules]
    net(channels_first(images))
    for hook in hooks:
        hook.remove()
    return seen


@dataclass(frozen=True)
class Step:
    """What one forward and backward pass gives; gradients and running statistics under PyTorch's names."""

    logits: np.ndarray
    features: np.ndarray
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def step(net: torch.nn.Module, head: str, images: np.ndarray, labels: np.ndarray, train: bool) -> Step:
    """The loss is the mean cross-entropy."""
    features = []
    hook = net.get_submodule(head).register_forward_pre_hook(lambda _m, x: features.append(x[0].detach().numpy()))
    net.train(train).zero_grad()
    logits = net(channels_first(images))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    hook.remove()
    gradients = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
    statistics = {name: b.numpy() for name, b in net.named_buffers() if b.dtype.is_floating_point}
    return Step(logits.detach().numpy(), features[0], gradients, statistics)
