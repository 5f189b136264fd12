"""PyTorch's side of the numerical cross-check: its networks, its autograd, the paper's formulas written out.

Nothing here uses JAX. The networks are torchvision's own classes at reduced depth and width; for the CIFAR ResNets,
which are in no library, a module with akamaster's attribute names.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional


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


CONVNEXT_SHAPE = (1, 1, 1, 1), (16, 24, 32, 40)  # depths and widths of the stages
_SETTINGS = [tv.convnext.CNBlockConfig(*row) for row in ((16, 24, 1), (24, 32, 1), (32, 40, 1), (40, None, 1))]

RESNET = Network(partial(tv.ResNet, tv.resnet.BasicBlock, [1, 1, 1, 1]), 24, "fc", r"layer\d\.\d")
CIFAR_RESNET20 = Network(partial(CifarNet, 3), 16, "linear", r"layer\d\.\d")
CONVNEXT = Network(partial(tv.ConvNeXt, _SETTINGS), 48, "classifier.2", r"features\.[1357]\.\d")
VIT = Network(
    partial(tv.VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192),
    32,
    "heads.head",
    r"encoder\.layers\.encoder_layer_\d",
)


def create(network: Network, seed: int) -> torch.nn.Module:
    """The network with random weights, every parameter and running statistic moved away from its initial value.

    A layer scale of 1e-6, a head of zeros or a variance of one would hide whatever stands behind it.
    """
    torch.manual_seed(seed)
    net = network.create(num_classes=10)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.dtype.is_floating_point:
                noise = torch.rand(value.shape, generator=rng)
                is_matrix = value.ndim > 1 and not name.endswith("layer_scale")
                value += (noise - 0.5) / value[0].numel() ** 0.5 if is_matrix else noise
    return net


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Images as PyTorch takes them."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def penalty(h: torch.Tensor, alpha: float, beta: float, delta: float | None, eps: float = 1e-4) -> torch.Tensor:
    """Eqs. 2 to 4 of the paper, Eq. 7 if `delta` is given; features are the last axis."""
    d = h.shape[-1]
    c = torch.cov(h.flatten(end_dim=-2).T)
    off = c[~torch.eye(d, dtype=torch.bool)]
    # Eq. 7 is twice PyTorch's Huber loss.
    huber = functional.huber_loss
    costs = off**2 if delta is None else 2 * huber(off, torch.zeros_like(off), reduction="none", delta=delta)
    return alpha * torch.relu(1 - torch.sqrt(c.diagonal() + eps)).mean() + beta * costs.mean()


def penalty_gradient(h: np.ndarray, alpha: float, beta: float, delta: float | None) -> np.ndarray:
    """Autograd of `penalty`."""
    leaf = torch.tensor(h, requires_grad=True)
    penalty(leaf, alpha, beta, delta).backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def algorithm_1(h: np.ndarray, alpha: float, beta: float, eps: float = 1e-4) -> np.ndarray:
    """What Appendix B as printed adds to the gradient of `h`, whose columns it takes to have zero mean.

    The sign before alpha is lost in the paper's typesetting; a minus makes it the gradient of Eq. 3.
    """
    rows = torch.from_numpy(h).flatten(end_dim=-2)
    n, d = rows.shape
    covariance = torch.mm(rows.t(), rows) / (n - 1)
    diagonal = functional.threshold(torch.rsqrt(covariance.diagonal() + eps), 1.0, 0.0)
    of_std = diagonal * rows
    of_cov = torch.mm(rows, covariance.fill_diagonal_(0))
    return (-alpha / (d * (n - 1)) * of_std + 4 * beta / (d * (d - 1)) * of_cov).numpy().reshape(h.shape)


@dataclass(frozen=True)
class Step:
    """What one step computes; gradients and running statistics under PyTorch's names."""

    eval_logits: np.ndarray
    logits: np.ndarray
    features: np.ndarray  # the input of the classifier
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def step(network: Network, net: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> Step:
    """Logits in evaluation mode; then one forward and backward pass in training mode, of the mean cross-entropy."""
    x, seen = channels_first(images), []
    with torch.no_grad():
        eval_logits = net.eval()(x)
    hook = net.get_submodule(network.head).register_forward_pre_hook(lambda _module, x: seen.append(x[0].detach()))
    logits = net.train()(x)
    hook.remove()
    functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    gradients = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
    statistics = {name: b.numpy() for name, b in net.named_buffers() if b.dtype.is_floating_point}
    return Step(eval_logits.numpy(), logits.detach().numpy(), seen[0].numpy(), gradients, statistics)


Weights = tuple[float, float, float | None]  # alpha, beta, delta of the penalty


def losses(
    network: Network,
    net: torch.nn.Module,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    weights: Weights,
    learning_rate: float,
) -> np.ndarray:
    """The cross-entropy at every step of SGD with momentum 0.9, the penalty of every block's output in the loss."""
    outputs: list[torch.Tensor] = []
    for name, module in net.train().named_modules():
        if re.fullmatch(network.blocks, name):
            module.register_forward_hook(lambda _module, _inputs, h: outputs.append(h))
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9)
    history = []
    for images, labels in batches:
        outputs.clear()
        loss = functional.cross_entropy(net(channels_first(images)), torch.from_numpy(labels))
        features = [h.movedim(1, -1) if h.ndim == 4 else h for h in outputs]
        penalized = loss + torch.stack([penalty(h, *weights) for h in features]).sum()
        optimizer.zero_grad()
        penalized.backward()
        optimizer.step()
        history.append(loss.item())
    return np.array(history)


def updated(
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    groups: list[dict[str, Any]],
    gradients: Iterable[list[np.ndarray]],
    rates: Iterable[float],
) -> list[np.ndarray]:
    """The parameters after one update for each list of gradients; every group has one parameter, an array."""
    leaves = [torch.tensor(group["params"]) for group in groups]
    optimizer = make_optimizer([group | {"params": [leaf]} for group, leaf in zip(groups, leaves, strict=True)])
    for values, rate in zip(gradients, rates, strict=True):
        for leaf, value, group in zip(leaves, values, optimizer.param_groups, strict=True):
            leaf.grad, group["lr"] = torch.from_numpy(value), rate
        optimizer.step()
    return [leaf.numpy() for leaf in leaves]


def warm_up_and_cosine(peak: float, warmup: int, steps: int) -> list[float]:
    """The learning rate of every step from PyTorch's own schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], peak)
    schedulers = torch.optim.lr_scheduler
    linear = schedulers.LambdaLR(optimizer, lambda step: step / warmup)
    cosine = schedulers.CosineAnnealingLR(optimizer, steps - warmup)
    schedule = schedulers.SequentialLR(optimizer, [linear, cosine], [warmup])
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def smoothed_cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """The value for each row, and the gradient of their mean."""
    leaf = torch.tensor(logits, requires_grad=True)
    rows = functional.cross_entropy(leaf, torch.from_numpy(labels), label_smoothing=smoothing, reduction="none")
    rows.mean().backward()
    assert leaf.grad is not None
    return rows.detach().numpy(), leaf.grad.numpy()
