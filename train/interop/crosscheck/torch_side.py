"""PyTorch's side of every comparison: its autograd, its optimizers, the paper's formulas written out.

Nothing here computes with JAX.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from train.config import SGD, AdamW, Cosine, OptimizerConfig, StepDecay
from train.interop.crosscheck.torch_networks import Network


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


class LARS(torch.optim.Optimizer):
    """Momentum SGD on gradients scaled to their weights, as SimCLR, Barlow Twins and VICReg write it.

    The trust ratio scales the gradient before momentum, the learning rate comes after it, and parameters of one
    axis are neither decayed nor scaled.
    """

    def __init__(self, params: Any, weight_decay: float, momentum: float, trust_coefficient: float):
        defaults = {"weight_decay": weight_decay, "momentum": momentum, "trust": trust_coefficient, "lr": 0.0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    norms = p.norm(), update.norm()
                    update = update * (group["trust"] * norms[0] / norms[1] if min(norms) > 0 else 1.0)
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * buffer)


def update(config: OptimizerConfig, start: list[np.ndarray], gradients: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The parameters after one update for each list of gradients; the last parameter is a normalization layer's."""
    leaves = [torch.tensor(value) for value in start]
    rule: Any = config.rule
    decay = rule.weight_decay
    match rule:
        case SGD():
            optimizer: Any = torch.optim.SGD(leaves, 1.0, momentum=rule.momentum, weight_decay=decay)
        case AdamW():
            of_norms = decay if rule.decay_norms else 0.0
            groups = [{"params": leaves[:-1]}, {"params": leaves[-1:], "weight_decay": of_norms}]
            optimizer = torch.optim.AdamW(groups, 1.0, (rule.b1, rule.b2), weight_decay=decay)
        case _:
            weights, biases = ([leaf for leaf in leaves if (leaf.ndim > 1) is kind] for kind in (True, False))
            groups = [{"params": weights}, {"params": biases, "share": rule.bias_rate or 1.0}]
            optimizer = LARS(groups, decay, rule.momentum, rule.trust_coefficient)
    for values, rate in zip(gradients, rates(config.schedule, len(gradients), 1), strict=True):
        for leaf, value in zip(leaves, values, strict=True):
            leaf.grad = torch.from_numpy(value).clone()  # clipping works in place
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves, config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        optimizer.step()
    return [leaf.numpy() for leaf in leaves]


def rates(config: Cosine | StepDecay, epochs: int, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step from PyTorch's own schedulers, stepped once an epoch where `config` is."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], config.peak_learning_rate)
    schedulers = torch.optim.lr_scheduler
    if isinstance(config, StepDecay):
        schedule: Any = schedulers.StepLR(optimizer, config.every_steps // steps_per_epoch, config.factor)
        hold = steps_per_epoch
    else:
        hold = config.hold_steps
        warmup, ticks = config.warmup_steps // hold, epochs * steps_per_epoch // hold
        first = config.warmup_start
        linear = schedulers.LambdaLR(optimizer, lambda tick: first + (1 - first) * tick / warmup)
        if first:
            linear = schedulers.LinearLR(optimizer, first, total_iters=warmup)
        cosine = schedulers.CosineAnnealingLR(optimizer, ticks - warmup, eta_min=config.end * config.peak_learning_rate)
        schedule = schedulers.SequentialLR(optimizer, [linear, cosine], [warmup])
    found = []
    for _ in range(epochs * steps_per_epoch // hold):
        found += [schedule.get_last_lr()[0]] * hold
        optimizer.step()
        schedule.step()
    return found


def moving_average(
    history: list[dict[str, np.ndarray]], base_decay: float, epochs: int, warmup_epochs: int
) -> list[np.ndarray]:
    """Weights averaged by PyTorch's own class in the way of torchvision's training script.

    1024 images a step, 50 steps an epoch, an update at every 8th; the decay is that of updates at every 32nd.
    """
    module = torch.nn.Module()
    for name, value in history[0].items():
        module.register_buffer(name, torch.tensor(value))
    alpha = min(1.0, (1.0 - base_decay) * 1024 * 32 / epochs)
    swa = torch.optim.swa_utils
    average = swa.AveragedModel(module, multi_avg_fn=swa.get_ema_multi_avg_fn(1.0 - alpha), use_buffers=True)
    for step, weights in enumerate(history):
        epoch, index = divmod(step, 50)
        for name, value in weights.items():
            getattr(module, name).copy_(torch.from_numpy(value))
        if index % 8 == 0:
            average.update_parameters(module)
            if epoch < warmup_epochs:
                average.n_averaged.fill_(0)
    return [getattr(average.module, name).numpy() for name in history[0]]


def smoothed_cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """The value for each row, and the gradient of their mean."""
    leaf = torch.tensor(logits, requires_grad=True)
    rows = functional.cross_entropy(leaf, torch.from_numpy(labels), label_smoothing=smoothing, reduction="none")
    rows.mean().backward()
    assert leaf.grad is not None
    return rows.detach().numpy(), leaf.grad.numpy()
