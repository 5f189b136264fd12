"""A look into every layer while training: does it collapse, and how hard does the regularizer pull?

A program of its own, run on a batch and the state before its step: the compiled training step knows nothing of it.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import vcreg_jax as vc
from train.run.log import RunLog
from train.trainer.model import Architecture, structure
from train.trainer.objective import Batch, Objective
from train.trainer.step import Normalize, State, make_loss
from vcreg_jax import Regularizer

FEWEST_DIRECTIONS, SMALLEST_STD = 2.0, 1e-2  # below which a layer is said to collapse
LARGEST_RATIO = 10.0  # of the regularizer's gradient over the task's, beyond which it is said to be strong


class Diagnostics:
    """Looks into the layers of one run. Says so when one begins to collapse, or its regularizer overpowers the task."""

    def __init__(self, architecture: Architecture, normalize: Normalize, objective: Objective):
        self._make = functools.partial(make_look, architecture, normalize, objective)
        self._warned: set[str] = set()

    def look(self, step: int, state: State, batch: Batch, seed: int, log: RunLog) -> None:
        """Writes one line of the split "layers"; on the terminal a line for each layer with a warning, once."""
        found = {name: float(value) for name, value in jax.device_get(self._make()(state, batch, seed)).items()}
        log.layers(step, found)
        warnings = [f"{layer} collapses: {why}" for layer, why in find_collapsed(found).items()]
        warnings += [
            f"{layer}: the regularizer's gradient is {ratio:.0f} times the task's: if accuracy suffers, weaken it"
            for layer, ratio in find_overpowered(found).items()
        ]
        for warning in warnings:
            if (key := warning.split(":")[0]) not in self._warned:
                self._warned.add(key)
                log.warn(step, [warning])


def find_collapsed(found: dict[str, float]) -> dict[str, str]:
    """The layers whose features have (almost) one direction or no spread left, with the reason."""
    reasons = {}
    for layer in dict.fromkeys(name.split("/")[0] for name in found):
        rank, std = found[f"{layer}/effective_rank"], found[f"{layer}/mean_std"]
        if not (math.isfinite(rank) and math.isfinite(std)):
            reasons[layer] = "its features are not finite"
        elif rank < FEWEST_DIRECTIONS:
            reasons[layer] = f"an effective rank of {rank:.2f}"
        elif std < SMALLEST_STD:
            reasons[layer] = f"a mean standard deviation of {std:.1e}"
    return reasons


def find_overpowered(found: dict[str, float]) -> dict[str, float]:
    """The layers whose regularizer's gradient exceeds the task's tenfold, with how many times."""
    suffix = "/gradient_ratio"
    ratios = {name.removesuffix(suffix): value for name, value in found.items() if name.endswith(suffix)}
    return {layer: ratio for layer, ratio in ratios.items() if ratio > LARGEST_RATIO}


@dataclass(frozen=True, eq=False)
class _Probe:
    """Stands where a regularizer would: keeps what it sees, and adds zeros by which one can differentiate."""

    name: str
    regularizer: Regularizer
    layers: "_Layers"

    def __call__(self, h: Array, /) -> Array:
        return self.layers.passed(h, self)


class _Layers:
    """What the probes of one network have seen in one pass; `shifts` are None while only shapes are asked for."""

    def __init__(self) -> None:
        self.start(None)

    def start(self, shifts: list[Array] | None) -> None:
        self.shifts, self.seen, self.probes = shifts, [], []

    def passed(self, h: Array, probe: _Probe) -> Array:
        h = h if self.shifts is None else h + self.shifts[len(self.seen)]
        self.seen.append(h)
        self.probes.append(probe)
        return h


@functools.lru_cache
def make_look(
    architecture: Architecture, normalize: Normalize, objective: Objective
) -> Callable[[State, Batch, int], dict[str, Array]]:
    """A jitted `(state, batch, seed) -> numbers` of every block's output, the features, and every regularized layer.

    Of each layer h: what `vc.diagnose` finds, and `gradient_ratio`, the norm of the gradient that the layer's own
    regularizer adds over that of the task's loss with respect to h (0 without one). Where there is a regularizer, its
    `penalty`, and of VCReg that penalty's two terms with their weights, `variance_term` and `covariance_term`. The
    network is in training mode and sees what the step's own loss shows it.
    """
    layers = _Layers()

    def probe(site: str, reg: Regularizer) -> Regularizer:
        return reg if site == "downsample" and reg is vc.identity else _Probe(site, reg, layers)

    probes = architecture.sites.map(probe)
    graphdef, _ = structure(replace(architecture, sites=probes))
    loss_of = make_loss(graphdef, normalize, objective)

    @jax.jit
    def look(state: State, batch: Batch, seed: int) -> dict[str, Array]:
        def loss_fn(shifts: list[Array] | None) -> tuple[Array, list[Array]]:
            layers.start(shifts)
            loss, _ = loss_of(state["params"], state, batch, seed)
            return loss, layers.seen

        shapes = jax.eval_shape(lambda: loss_fn(None)[1])
        task, seen = jax.grad(loss_fn, has_aux=True)([jnp.zeros(h.shape, h.dtype) for h in shapes])
        probes = layers.probes
        layers.start(None)
        found = {}
        for name, probe, h, of_task in zip(_names(probes), probes, seen, task, strict=True):
            found |= {f"{name}/{key}": value for key, value in _numbers(probe.regularizer, h, of_task).items()}
        return found

    return look


def _names(probes: list[_Probe]) -> list[str]:
    """The layers by kind and number, such as "block 3"."""
    kinds = [probe.name for probe in probes]
    numbered = [f"{kind} {kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)]
    return [kind if kind == "features" else name for kind, name in zip(kinds, numbered, strict=True)]


def _numbers(regularizer: Any, h: Array, of_task: Array) -> dict[str, Array]:
    is_vcreg = isinstance(regularizer, vc.VCReg)
    diagnosis = vc.diagnose(h, delta=regularizer.delta, eps=regularizer.eps) if is_vcreg else vc.diagnose(h)
    own = regularizer.gradient(h) if hasattr(regularizer, "gradient") else jnp.zeros(())
    size = jnp.linalg.norm(of_task.astype(jnp.float32))
    ratio = jnp.linalg.norm(own.astype(jnp.float32)) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)
    return {**diagnosis._asdict(), "gradient_ratio": ratio, **_penalties(regularizer, h)}


def _penalties(regularizer: Any, h: Array) -> dict[str, Array]:
    if regularizer is vc.identity or not hasattr(regularizer, "penalty"):
        return {}
    if not isinstance(regularizer, vc.VCReg):
        return {"penalty": regularizer.penalty(h)}
    variance, covariance = replace(regularizer, beta=0.0).penalty(h), replace(regularizer, alpha=0.0).penalty(h)
    return {"penalty": variance + covariance, "variance_term": variance, "covariance_term": covariance}
