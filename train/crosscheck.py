"""`python -m train crosscheck`: this implementation and PyTorch, side by side, number by number.

Both get the same random weights and the same random images. Float32 says how close two libraries are in practice;
float64, where no rounding can hide a wrong formula, is the judge. Networks with relu see one more thing in float32:
rounding now and then carries an activation across the corner in one library and not in the other, and with it a
share of all gradients before it. `SEED` is one at which that does not happen; in float64 any seed will do.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax.sharding import AxisType

import vcreg_jax as vc
from train import torch_reference as there
from train.config import OptimizerConfig
from train.optim import learning_rate, make_optimizer
from train.step import Normalize, initial_state, make_train_step, split
from vcreg_jax import torch_weights
from vcreg_jax.models.convnext import ConvNeXt
from vcreg_jax.models.resnet import ResNet
from vcreg_jax.models.resnet_cifar import CifarResNet
from vcreg_jax.models.vit import TORCHVISION, ViT

SEED = 0
STEPS = 20
BATCH = 8
NOT_IMPLEMENTED = ("LARS updates", "EMA", "schedule: steps", "schedule: warm-up and cosine per epoch")
# Compiling takes longer than running. The level changes the speed of the machine code and not what it computes.
_FAST_COMPILE: Any = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class Item:
    """One comparison. `relative` is what counts: norm of the difference over norm of PyTorch's, the worst tensor's."""

    name: str
    absolute: float  # largest difference of two elements
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the relative difference is within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class Family:
    """One kind of network, there and here, and how the 20 steps are taken."""

    name: str
    theirs: there.Network
    ours: Callable[..., nnx.Module]
    delta: float | None  # of the penalty
    learning_rate: float  # at which the loss clearly moves
    has_statistics: bool


FAMILIES = (
    Family("ResNet", there.RESNET, partial(ResNet, (1, 1, 1, 1), False), None, 0.0003, True),
    Family("CIFAR ResNet-20", there.CIFAR_RESNET20, partial(CifarResNet, 3), None, 0.001, True),
    Family("ConvNeXt", there.CONVNEXT, partial(ConvNeXt, *there.CONVNEXT_SHAPE), None, 0.01, False),
    Family("ViT", there.VIT, partial(ViT, 48, 2, 3, 8, TORCHVISION, image_size=32), 0.05, 0.01, False),
)


def run(json_path: Path | None = None) -> bool:
    """Prints every comparison as it is made, writes them to `json_path` if given; returns whether all passed."""
    if json_path is not None and not json_path.parent.is_dir():
        raise ValueError(f"There is no folder {json_path.parent}.")
    torch.set_num_threads(1)  # such small networks are slower on more
    print(", ".join(f"{name} {version}" for name, version in _versions().items()), "\n")
    print(f"{'compared with PyTorch':62}{'absolute':>10}{'relative':>10}{'tolerance':>11}")
    items = []
    for item in all_items():
        items.append(item)
        print(line(item), flush=True)
    for name in NOT_IMPLEMENTED:
        print(f"{name:62}{'not implemented':>31}")
    failed = [item.name for item in items if not item.passed]
    print(f"\n{len(items) - len(failed)} of {len(items)} passed" + (f"; failed: {'; '.join(failed)}" if failed else ""))
    if json_path is not None:
        rows = [asdict(item) | {"passed": item.passed} for item in items]
        result = {"versions": _versions(), "items": rows, "not_implemented": NOT_IMPLEMENTED, "passed": not failed}
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    return not failed


def line(item: Item) -> str:
    """One row of the table."""
    numbers = f"{item.absolute:10.1e}{item.relative:10.1e}{item.tolerance:11.0e}"
    return f"{item.name:62}{numbers}  {'pass' if item.passed else 'FAIL'}"


def all_items() -> Iterator[Item]:
    """Every comparison, the quick ones first."""
    yield from regularizer()
    yield from label_smoothing()
    yield from schedule()
    yield from optimizers()
    for family in FAMILIES:
        for dtype in ("float32", "float64"):
            yield from one_step(family, dtype)
    for family in FAMILIES:
        for dtype in ("float32", "float64"):
            yield from training(family, dtype)


def regularizer() -> Iterator[Item]:
    """What VCReg's backward pass adds, in float64."""
    h = np.random.default_rng(SEED).normal(size=(6, 5, 5, 12)) @ np.diag(np.linspace(0.3, 1.6, 12))
    h += np.random.default_rng(SEED + 1).normal(size=(6, 5, 5, 1))  # so that features are correlated
    centred = h - h.mean(axis=(0, 1, 2))
    alpha, beta, delta = 0.64, 0.08, 0.5

    def added(h: np.ndarray, **options: Any) -> np.ndarray:
        with jax.enable_x64(True):
            _, backward = jax.vjp(vc.VCReg(alpha, beta, **options), jnp.asarray(h))
            return np.asarray(backward(jnp.zeros(h.shape))[0])

    exact, clipped = (there.penalty_gradient(h, alpha, beta, limit) for limit in (None, delta))
    yield _item("VCReg: gradient, float64", added(h), exact, 1e-12)
    yield _item("VCReg: gradient with delta, float64", added(h, delta=delta), clipped, 1e-12)
    printed = there.algorithm_1(centred, alpha, beta)
    yield _item("VCReg: paper_scale against Algorithm 1, float64", added(centred, paper_scale=True), printed, 1e-12)


def label_smoothing() -> Iterator[Item]:
    """The cross-entropy with smoothing 0.1 of 9 rows and its gradient, in float64."""
    rng = np.random.default_rng(SEED)
    logits, labels = rng.normal(size=(9, 7)) * 3, rng.integers(0, 7, 9)
    values, gradient = there.smoothed_cross_entropy(logits, labels, 0.1)
    with jax.enable_x64(True):
        ours = vc.losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1)
        slope = jax.grad(lambda z: vc.losses.cross_entropy(z, jnp.asarray(labels), 0.1).mean())(jnp.asarray(logits))
    yield _item("label smoothing: values, float64", ours, values, 1e-12)
    yield _item("label smoothing: gradient, float64", slope, gradient, 1e-12)


_SCHEDULED = OptimizerConfig(peak_learning_rate=1e-2, weight_decay=0.05, warmup_steps=5)


def schedule() -> Iterator[Item]:
    """The learning rate at each of 100 steps. Ours counts in float32."""
    config = OptimizerConfig(peak_learning_rate=4e-3, weight_decay=0.0, warmup_steps=10)
    ours = np.array([learning_rate(config, 100)(step) for step in range(100)])
    yield _item("schedule: linear warm-up and cosine", ours, np.array(there.warm_up_and_cosine(4e-3, 10, 100)), 1e-6)


def optimizers() -> Iterator[Item]:
    """The parameters after 20 updates with random gradients, in float64; AdamW under its schedule, in two groups."""
    rng = np.random.default_rng(SEED)
    start = [rng.normal(size=(3, 4)), rng.normal(size=4)]
    gradients = [[rng.normal(size=value.shape) for value in start] for _ in range(STEPS)]
    with jax.enable_x64(True):
        sgd = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
        ours = _updated(sgd, start, gradients)
        groups: list[dict[str, Any]] = [{"params": value} for value in start]
        make: Any = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
        theirs = there.updated(make, groups, gradients, [0.1] * STEPS)
        yield _worst("SGD with momentum and weight decay: 20 updates, float64", ours, theirs, 1e-12)
        ours = _updated(make_optimizer(_SCHEDULED, STEPS, frozenset({("1",)})), start, gradients)
        groups[1]["weight_decay"] = 0.0
        make = partial(torch.optim.AdamW, lr=1.0, weight_decay=_SCHEDULED.weight_decay)
        theirs = there.updated(make, groups, gradients, there.warm_up_and_cosine(1e-2, 5, STEPS))
        # The schedule counts in float32.
        yield _worst("AdamW, no decay for norms, scheduled: 20 updates, float64", ours, theirs, 1e-6)


def _updated(
    optimizer: optax.GradientTransformation, start: list[np.ndarray], gradients: list[list[np.ndarray]]
) -> list[np.ndarray]:
    params = {str(index): jnp.asarray(value) for index, value in enumerate(start)}
    state = optimizer.init(params)
    for values in gradients:
        gradient = {str(index): jnp.asarray(value) for index, value in enumerate(values)}
        updates, state = optimizer.update(gradient, state, params)
        params = cast(dict[str, jax.Array], optax.apply_updates(params, updates))
    return [np.asarray(value) for value in params.values()]


def one_step(family: Family, dtype: str) -> Iterator[Item]:
    """Everything that a forward and a backward pass of the mean cross-entropy compute."""
    images, labels = _batch(family, np.random.default_rng(SEED))
    images = (images / 255).astype(dtype)
    net = there.create(family.theirs, SEED)
    with jax.enable_x64(dtype == "float64"):
        ours = _our_step(_loaded(family, net, dtype), images, labels)
    theirs = there.step(family.theirs, net.to(getattr(torch, dtype)), images, labels)
    name, outputs, gradients = f"{family.name}, {dtype}: ", *((1e-4, 1e-3) if dtype == "float32" else (1e-9, 1e-9))
    yield _item(f"{name}logits in evaluation", ours.eval_logits, theirs.eval_logits, outputs)
    yield _item(f"{name}logits in training", ours.logits, theirs.logits, outputs)
    yield _item(f"{name}features in training", ours.features, theirs.features, outputs)
    yield _worst(f"{name}gradient of the worst parameter", *_paired(ours.gradients, theirs.gradients), gradients)
    if family.has_statistics:
        yield _worst(f"{name}running statistics", *_paired(ours.statistics, theirs.statistics), outputs)


def _our_step(model: nnx.Module, images: np.ndarray, labels: np.ndarray) -> there.Step:
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
    named = torch_weights.export(nnx.merge(graphdef, gradients, statistics))
    of_norms = {key: value for key, value in named.items() if key.endswith(("running_mean", "running_var"))}
    of_loss = {key: value for key, value in named.items() if not key.endswith(("mean", "var", "num_batches_tracked"))}
    return there.Step(np.asarray(eval_logits), np.asarray(logits), np.asarray(features), of_loss, of_norms)


def training(family: Family, dtype: str, steps: int = STEPS) -> Iterator[Item]:
    """The loss at every step of a run with VCReg at every block, by `train.step` here and by autograd there."""
    rng = np.random.default_rng(SEED)
    batches = [_batch(family, rng) for _ in range(4)] * (steps // 4)
    weights = (0.64, 0.08, family.delta)
    net = there.create(family.theirs, SEED)
    with jax.enable_x64(dtype == "float64"):
        model = _loaded(family, net, dtype, sites=vc.Sites(block=vc.VCReg(*weights)))
        ours = _our_losses(model, batches, family.learning_rate)
    normalized = [((images / 255).astype(dtype), labels) for images, labels in batches]
    net = net.to(getattr(torch, dtype))
    theirs = there.losses(family.theirs, net, normalized, weights, family.learning_rate)
    name = f"{family.name}, {dtype}: {steps} losses with VCReg" + (f", delta {family.delta}" if family.delta else "")
    difference = np.abs(ours - theirs)
    relative = float((difference / np.abs(theirs)).max())
    yield Item(name, float(difference.max()), relative, 1e-4 if dtype == "float32" else 1e-9)


def _our_losses(model: nnx.Module, batches: list[tuple[np.ndarray, np.ndarray]], rate: float) -> np.ndarray:
    graphdef, params, batch_stats = split(model)
    optimizer = optax.sgd(rate, momentum=0.9)
    axis_types = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=axis_types, devices=jax.devices()[:1])
    step = make_train_step(graphdef, optimizer, Normalize((0.0,) * 3, (1.0,) * 3), 0.0, mesh)
    state = initial_state(params, batch_stats, optimizer)
    compiled, history = None, []
    for images, labels in batches:
        batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
        compiled = compiled or cast(Any, step).lower(state, batch, SEED).compile(_FAST_COMPILE)
        state, metrics = compiled(state, batch, SEED)
        history.append(float(metrics["loss"]))
    return np.array(history)


def _loaded(family: Family, net: torch.nn.Module, dtype: str, **options: Any) -> nnx.Module:
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


def _item(name: str, ours: Any, theirs: np.ndarray, tolerance: float) -> Item:
    return _worst(name, [np.asarray(ours)], [theirs], tolerance)


def _worst(name: str, ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> Item:
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape or (a.dtype != b.dtype and "float64" in name) for a, b in pairs):
        return Item(name, np.inf, np.inf, tolerance)
    absolute = [np.abs(a - b).max() for a, b in pairs]
    relative = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
    return Item(name, float(np.max(absolute)), float(np.max(relative)), tolerance)


def _paired(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both in one order; a name that only one side has is a KeyError or a length that does not fit."""
    return [ours[name] for name in theirs] + [ours[name] for name in ours.keys() - theirs.keys()], list(theirs.values())


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "flax", "optax", "torch", "torchvision", "numpy")}
