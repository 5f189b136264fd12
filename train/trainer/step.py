"""The training step and the evaluation step: pure functions of plain dicts of arrays."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

import vcreg_jax as vc
from train.config import EMAConfig, GuardConfig
from train.trainer import ema, guards
from train.trainer.mesh import state_shardings
from train.trainer.objective import Batch, Metrics, Objective

# step: int32 (); params, batch_stats: nested dicts of arrays; opt_state: optax's;
# guard: `train.trainer.guards`'; ema, if kept: params, batch_stats
State = dict[str, Any]
Loss = Callable[..., tuple[Array, tuple[Metrics, dict]]]  # of `make_loss`


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """The model's structure, and its parameters and batch statistics as nested dicts of arrays."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def initial_state(
    params: dict,
    batch_stats: dict,
    optimizer: optax.GradientTransformation,
    with_ema: bool = False,
    guard: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> State:
    """The state before the first step; with `ema`, a moving average of the weights, which starts as a copy."""
    weights = {"params": params, "batch_stats": batch_stats}
    state = {"step": jnp.zeros((), jnp.int32), **weights, "opt_state": optimizer.init(params)}
    state["guard"] = guards.initial(guard)
    return state | {"ema": jax.tree.map(jnp.copy, weights)} if with_ema else state


def weights_to_use(state: State) -> tuple[dict, dict]:
    """The parameters and batch statistics to evaluate, probe and export: the moving average's if there is one."""
    weights = state.get("ema", state)
    return weights["params"], weights["batch_stats"]


@dataclass(frozen=True)
class Normalize:
    """(pixels / 255 - mean) / std per channel in float32, on the device: batches travel as bytes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Array) -> Array:
        """The images as the network sees them."""
        mean, std = (jnp.asarray(statistic, jnp.float32).reshape(1, 1, 1, -1) for statistic in (self.mean, self.std))
        return (pixels.astype(jnp.float32) / 255.0 - mean) / std


def make_loss(graphdef: nnx.GraphDef, normalize: Normalize, objective: Objective) -> Loss:
    """A `(params, state, batch, seed) -> (loss, (metrics, batch_stats))` of one training step.

    The regularizers' gradients enter through the model itself; the loss is the objective's alone. All randomness of
    step t is `fold_in(seed, t)`, and regularizers with directions have those of t. `prepared` may change the model
    before it is called.
    """

    def loss_fn(
        params: dict, state: State, batch: Batch, seed: int, prepared: Callable[..., Any] = lambda model: model
    ):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        model = vc.at_step(prepared(nnx.merge(graphdef, params, state["batch_stats"])), state["step"])
        loss, metrics = objective(model, batch, normalize, key)
        return loss, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return loss_fn


def make_update(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    ema_config: EMAConfig | None = None,
    guard_config: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> Callable[[State, Batch, Any], tuple[State, Metrics]]:
    """A `(state, batch, seed) -> (state, metrics)` to be transformed: jitted, vmapped, scanned.

    `skipped` counts the updates that were not taken so far.
    """

    def update(state: State, batch: Batch, seed: Any) -> tuple[State, Metrics]:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, batch_stats)), gradients = grad_fn(state["params"], state, batch, seed)
        gradient_norm = optax.tree.norm(gradients)
        take, guard = guards.judge(guard_config, state["guard"], loss, gradient_norm)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        weights = {"params": optax.apply_updates(state["params"], updates), "batch_stats": batch_stats}
        taken = {**weights, "opt_state": opt_state}
        after = jax.tree.map(lambda new, old: jnp.where(take, new, old), taken, {name: state[name] for name in taken})
        after |= {"step": state["step"] + 1, "guard": guard}
        if ema_config is not None:
            after["ema"] = ema.update(ema_config, state["ema"], weights, state["step"], take)
        # Not the updates' norm: to sum it the compiler writes all updates out, 3 % of a ViT-B/32's step on a TPU v5e.
        return after, metrics | {"loss": loss, "gradient_norm": gradient_norm, "skipped": guard["skipped"]}

    return update


@functools.lru_cache
def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    normalize: Normalize,
    objective: Objective,
    mesh: Mesh,
    ema_config: EMAConfig | None = None,
    guard_config: GuardConfig = GuardConfig(),  # noqa: B008 - frozen
) -> Callable[[State, Batch, int], tuple[State, Metrics]]:
    """`make_update`, jitted, that donates the old state; the batch is the objective's."""
    update = make_update(make_loss(graphdef, normalize, objective), optimizer, ema_config, guard_config)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: State, batch: Batch, seed: int) -> tuple[State, Metrics]:
        after, metrics = update(state, batch, seed)
        # As the first state lay, so lie all: otherwise the second call would compile anew.
        return jax.lax.with_sharding_constraint(after, state_shardings(after, mesh)), metrics

    return train_step


@functools.lru_cache
def make_predict(graphdef: nnx.GraphDef, normalize: Normalize) -> Callable[[dict, dict, Array], tuple[Array, Array]]:
    """A jitted `(params, batch_stats, images) -> (logits, features)` in inference mode, images being uint8."""

    @jax.jit
    def predict(params: dict, batch_stats: dict, images: Array) -> tuple[Array, Array]:
        return nnx.merge(graphdef, params, batch_stats)(normalize(images))

    return predict


@jax.jit
def eval_sums(logits: Array, labels: Array, mask: Array) -> Metrics:
    """Sums over the rows that `mask` keeps: `loss` (unsmoothed), `accuracy` and `count`."""
    per_row = {
        "loss": vc.losses.cross_entropy(logits, labels),
        "accuracy": vc.metrics.correct(logits, labels),
        "count": jnp.ones(labels.shape),
    }
    return {name: jnp.where(mask, values, 0).sum() for name, values in per_row.items()}
