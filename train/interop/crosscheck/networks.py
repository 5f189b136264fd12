"""Whole networks: one step's outputs and gradients, and twenty steps with VCReg at every block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax.sharding import AxisType

import vcreg_jax as vc
from train.interop.crosscheck import torch_networks, torch_side
from train.interop.crosscheck.item import Item, compare, pair, worst_of
from train.interop.crosscheck.torch_networks import Network
from train.trainer.objective import Classification
from train.trainer.step import Normalize, initial_state, make_train_step, split
from vcreg_jax import torch_weights
from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import TIMM, TORCHVISION, ViT

SEED = 0
STEPS = 20
BATCH = 8
# Compiling takes longer than running. The level changes the speed of the machine code and not what it computes.
_FAST_COMPILE: Any = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Family:
    """One kind of network, there and here, and how the 20 steps are taken."""

    name: str
    theirs: Network
    ours: Callable[..., nnx.Module]
    delta: float | None  # of the penalty
    learning_rate: float  # at which the loss clearly moves
    has_statistics: bool
    naming: str | None = None  # of the weights there, where it is not torchvision's


_CONVNEXT_SHAPE = torch_networks.DEPTHS, torch_networks.DIMS
_VIT_SHAPE = 48, 2, 3, 8  # width, depth, heads, patch
FAMILIES = (
    Family("ResNet", torch_networks.RESNET, partial(ResNet, torch_networks.DEPTHS, False), None, 0.0003, True),
    Family(
        "bottleneck ResNet",
        torch_networks.BOTTLENECK_RESNET,
        partial(ResNet, torch_networks.DEPTHS, True, width=16),
        None,
        0.0003,
        True,
    ),
    Family("CIFAR ResNet-20", torch_networks.CIFAR_RESNET20, partial(CifarResNet, 3), None, 0.001, True),
    Family("ConvNeXt", torch_networks.CONVNEXT, partial(ConvNeXt, *_CONVNEXT_SHAPE), None, 0.01, False),
    Family(
        "timm ConvNeXt",
        torch_networks.TIMM_CONVNEXT,
        partial(ConvNeXt, *_CONVNEXT_SHAPE, timm_conv_mlp=True),
        None,
        0.01,
        False,
        "timm",
    ),
    Family("ViT", torch_networks.VIT, partial(ViT, *_VIT_SHAPE, TORCHVISION, image_size=32), 0.05, 0.01, False),
    Family(
        "timm ViT", torch_networks.TIMM_VIT, partial(ViT, *_VIT_SHAPE, TIMM, image_size=32), 0.05, 0.01, False, "timm"
    ),
)


def one_step(family: Family, dtype: str) -> Iterator[Item]:
    """Everything that a forward and a backward pass of the mean cross-entropy compute."""
    images, labels = _batch(family, np.random.default_rng(SEED))
    images = (images / 255).astype(dtype)
    net = torch_networks.create(family.theirs, SEED)
    with jax.enable_x64(dtype == "float64"):
        ours = _our_step(_load(family, net, dtype), images, labels, family.naming)
    theirs = torch_side.step(family.theirs, net.to(getattr(torch, dtype)), images, labels)
    name, outputs, gradients = f"{family.name}, {dtype}: ", *((1e-4, 1e-3) if dtype == "float32" else (1e-9, 1e-9))
    yield compare(f"{name}logits in evaluation", ours.eval_logits, theirs.eval_logits, outputs)
    yield compare(f"{name}logits in training", ours.logits, theirs.logits, outputs)
    yield compare(f"{name}features in training", ours.features, theirs.features, outputs)
    yield worst_of(f"{name}gradient of the worst parameter", *pair(ours.gradients, theirs.gradients), gradients)
    if family.has_statistics:
        yield worst_of(f"{name}running statistics", *pair(ours.statistics, theirs.statistics), outputs)


def _our_step(model: nnx.Module, images: np.ndarray, labels: np.ndarray, naming: str | None) -> torch_side.Step:
    graphdef, params, batch_stats = split(model)

    @partial(jax.jit, compiler_options=_FAST_COMPILE)
    def compute(params, batch_stats, images, labels):
        def loss(params):
            model = nnx.merge(graphdef, params, batch_stats)
            logits, features = model(images, train=True)
            statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
            return vc.losses.cross_entropy(logits, labels).mean(), (logits, features, statistics)

        gradients, of_training = jax.grad(loss, has_aux=True)(params)
        return nnx.merge(graphdef, params, batch_stats)(images)[0], gradients, of_training

    eval_logits, gradients, (logits, features, statistics) = compute(params, batch_stats, images, labels)
    named = torch_weights.export(nnx.merge(graphdef, gradients, statistics), naming)
    of_norms = {key: value for key, value in named.items() if key.endswith(("running_mean", "running_var"))}
    of_loss = {key: value for key, value in named.items() if not key.endswith(("mean", "var", "num_batches_tracked"))}
    return torch_side.Step(np.asarray(eval_logits), np.asarray(logits), np.asarray(features), of_loss, of_norms)


def training(family: Family, dtype: str, steps: int = STEPS) -> Iterator[Item]:
    """The loss at every step of a run with VCReg at every block, by `train.trainer.step` here, by autograd there."""
    rng = np.random.default_rng(SEED)
    batches = [_batch(family, rng) for _ in range(4)] * (steps // 4)
    weights = (0.64, 0.08, family.delta)
    net = torch_networks.create(family.theirs, SEED)
    with jax.enable_x64(dtype == "float64"):
        model = _load(family, net, dtype, sites=vc.Sites(block=vc.VCReg(*weights)))
        ours = _our_losses(model, batches, family.learning_rate)
    normalized = [((images / 255).astype(dtype), labels) for images, labels in batches]
    net = net.to(getattr(torch, dtype))
    theirs = torch_side.losses(family.theirs, net, normalized, weights, family.learning_rate)
    name = f"{family.name}, {dtype}: {steps} losses with VCReg" + (f", delta {family.delta}" if family.delta else "")
    difference = np.abs(ours - theirs)
    relative = float((difference / np.abs(theirs)).max())
    yield Item(name, float(difference.max()), relative, 1e-4 if dtype == "float32" else 1e-9)


def _our_losses(model: nnx.Module, batches: list[tuple[np.ndarray, np.ndarray]], rate: float) -> np.ndarray:
    graphdef, params, batch_stats = split(model)
    optimizer = optax.sgd(rate, momentum=0.9)
    axis_types = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=axis_types, devices=jax.devices()[:1])
    step = make_train_step(graphdef, optimizer, Normalize((0.0,) * 3, (1.0,) * 3), Classification(), mesh)
    state = initial_state(params, batch_stats, optimizer)
    compiled, history = None, []
    for images, labels in batches:
        batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
        compiled = compiled or cast(Any, step).lower(state, batch, SEED).compile(_FAST_COMPILE)
        state, metrics = compiled(state, batch, SEED)
        history.append(float(metrics["loss"]))
    return np.array(history)


def _load(family: Family, net: torch.nn.Module, dtype: str, **options: Any) -> nnx.Module:
    """Our network with the weights of theirs, parameters and computation in `dtype`."""
    model = nnx.eval_shape(lambda: family.ours(num_classes=10, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0), **options))
    torch_weights.load(model, net.state_dict())
    nnx.update(model, jax.tree.map(lambda value: value.astype(dtype), nnx.state(model)))
    return model


def _batch(family: Family, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images of bytes 0 and 255 only, which over 255 are exact in any precision, and labels of 10 classes."""
    size = family.theirs.size
    images = rng.integers(0, 2, (BATCH, size, size, 3), dtype=np.uint8) * np.uint8(255)
    return images, rng.integers(0, 10, BATCH)
