"""A grid of settings trained as one program: learning rates, weights of VCReg and seeds, each with its own network.

The images lie on the device, whole and padded, and are cropped and mirrored there. What stands in which batch and how
it is moved is drawn on the host as for any other run, so a setting's training is the one that the loop would do.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.config import Target, TrainConfig, check_seeds
from train.trainer.mesh import BATCH
from train.trainer.model import Architecture, structure
from train.trainer.objective import Batch, objective
from train.trainer.optim import make_optimizer
from train.trainer.step import Normalize, State, eval_sums, initial_state, make_loss, make_update, split, weights_to_use
from vcreg_jax import Sites, VCReg

if TYPE_CHECKING:  # images may also come without the packages that it needs
    from train.data.pipeline import Split

BASELINE = "baseline"  # the arm that every grid has: no regularizer


@dataclass(frozen=True)
class Strengths:
    """An arm of a grid: VCReg at these sites, with every alpha and every beta in place of its own.

    Of another regularizer every alpha is a factor of its weights, and beta is nothing: give one.
    """

    sites: Sites
    alphas: tuple[float, ...]
    betas: tuple[float, ...]

    def __post_init__(self):
        if bad := [strength for strength in (*self.alphas, *self.betas) if not 0 <= strength < math.inf]:
            raise ValueError(f"Strengths must be at least 0 and finite, got {bad[0]}.")


@dataclass(frozen=True)
class Grid:
    """A recipe without a regularizer and at every strength of one, each at every learning rate, trained together.

    Every point is trained with every search seed by `search`. Of each arm, and of the baseline, the point that scores
    best on validation images, on average over these seeds, goes on: it is trained by `train` with every seed and
    tested. The score is the network's own accuracy or, if there are targets, the mean accuracy of their probes.
    """

    name: str  # of the folder under `runs_directory`
    title: str  # of the table
    train: TrainConfig  # its learning rate is replaced by the grid's
    search: TrainConfig  # the same with other data or fewer steps; its validation images choose
    arms: dict[str, Strengths]  # by name; the baseline is an arm beside them
    learning_rates: tuple[float, ...]
    search_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    at_once: int  # settings in a program: as many as memory holds
    vmapped: int | None = None  # of these, how many at a time (None: all); on a CPU 1: grouped convolutions are slow
    steps_per_call: int = 10  # of the program; the run may be killed between two
    targets: dict[str, Target] = field(default_factory=dict)  # on which frozen features are probed, by name
    baseline_learning_rates: tuple[float, ...] = ()  # in place of the above: as many as an arm has points is fair
    runs_directory: str = "runs"
    paper: dict[str, float] = field(default_factory=dict)  # the paper's test accuracies in %, by arm

    def __post_init__(self):
        check_seeds(self.seeds)
        check_seeds(self.search_seeds)
        if bad := [rate for rate in (*self.learning_rates, *self.baseline_learning_rates) if not 0 <= rate < math.inf]:
            raise ValueError(f"A grid's learning rates must be at least 0 and finite, got {bad[0]}.")


@dataclass(frozen=True)
class Setting:
    """One point with one seed; weights of 0 add exactly nothing to finite gradients, which is the baseline."""

    learning_rate: float  # the schedule's peak
    alpha: float
    beta: float
    seed: int
    arm: str = BASELINE


class Images(NamedTuple):
    """A whole split on the device."""

    padded: Array  # uint8 (n, h + 2 m, w + 2 m, c), m being how far an image is moved at most
    labels: Array  # int32 (n,)


class Draws(NamedTuple):
    """What the batches of t steps hold, for each of k settings."""

    positions: Array  # int32 (k, t, b)
    top: Array  # int32 (k, t, b)
    left: Array  # int32 (k, t, b)
    mirrored: Array  # bool (k, t, b)


@dataclass(frozen=True)
class Program:
    """Three jitted functions of k settings, split over the devices of a mesh; k divides by their number."""

    initial: Callable[[Any], State]  # settings -> states; every leaf has a leading axis of k, here and below
    train: Callable[[State, Any, Draws, Images], tuple[State, Any]]  # donates the states; metrics (k, t)
    evaluate: Callable[[State, Any, Batch], Any]  # batches (m, b, ...) -> sums of `eval_sums`, (k,)


@functools.lru_cache(maxsize=8)
def make_program(config: TrainConfig, plain: Architecture, sites: Sites, mesh: Mesh, vmapped: int | None) -> Program:
    """The program for `config` with weights and learning rate left open; the same one for the same arguments.

    Args:
      config: the recipe.
      plain: the network without regularizers.
      sites: where VCReg is applied.
      mesh: the devices; its axes mean nothing here.
      vmapped: how many of a device's settings are vmapped, after which come the next as many; None: all.
    """
    normalize = Normalize(config.data.mean, config.data.std)
    schedule = replace(config.optimizer.schedule, peak_learning_rate=1.0)
    rule = make_optimizer(replace(config.optimizer, schedule=schedule), config.steps, structure(plain)[1])

    def network(setting: Any) -> nnx.Module:
        return replace(plain, sites=with_weights(sites, setting["alpha"], setting["beta"])).create(setting["seed"])

    def optimizer(setting: Any) -> optax.GradientTransformation:
        return optax.chain(rule, optax.scale(setting["learning_rate"]))  # all our rules are linear in it

    def initial(setting: Any) -> State:
        _, params, batch_stats = split(network(setting))
        return initial_state(params, batch_stats, optimizer(setting), config.ema is not None, config.guard)

    def train(state: State, setting: Any, draws: Draws, images: Images) -> tuple[State, Any]:
        loss_fn = make_loss(split(network(setting))[0], normalize, objective(config))
        update = make_update(loss_fn, optimizer(setting), config.ema, config.guard)

        def step(state: State, own: Draws) -> tuple[State, Any]:
            return update(state, batch_of(images, own, plain.image_shape), setting["seed"])

        return lax.scan(step, state, draws)

    def evaluate(state: State, setting: Any, batches: Batch) -> Any:
        graphdef = split(network(setting))[0]

        def add(totals: Any, batch: Batch) -> tuple[Any, None]:
            logits, _ = nnx.merge(graphdef, *weights_to_use(state))(normalize(batch["image"]))
            return jax.tree.map(jnp.add, totals, eval_sums(logits, batch["label"], batch["mask"])), None

        return lax.scan(add, {name: jnp.zeros(()) for name in ("loss", "accuracy", "count")}, batches)[0]

    over = functools.partial(_over_settings, mesh=mesh, vmapped=vmapped)
    return Program(
        jax.jit(over(initial, own=1)),
        jax.jit(over(train, own=3), donate_argnums=0),
        jax.jit(over(evaluate, own=2)),
    )


def _over_settings(function: Callable, own: int, mesh: Mesh, vmapped: int | None) -> Callable:
    """`function`, whose first `own` arguments have the axis of settings, and the others none."""

    def on_device(*arguments: Any) -> Any:
        count = jax.tree.leaves(arguments[:own])[0].shape[0]
        at_a_time = None if vmapped == 1 else min(vmapped or count, count)
        return lax.map(lambda each: function(*each, *arguments[own:]), arguments[:own], batch_size=at_a_time)

    def on_mesh(*arguments: Any) -> Any:
        specs = (BATCH,) * own + (PartitionSpec(),) * (len(arguments) - own)
        # Unchecked: checked, norms and regularizers would take other devices' settings for rows of the same batch.
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=BATCH, check_vma=False)(*arguments)

    return on_mesh


def without_regularizers(config: TrainConfig, data: "Split") -> Architecture:
    """The recipe's network for these images."""
    return Architecture(config.model, data.num_classes, data.image_shape, Sites())


def with_weights(sites: Sites, alpha: Any, beta: Any) -> Sites:
    """`sites` with these weights in place of each VCReg's own, and alpha times those of other regularizers."""

    def change(_: str, reg: Any) -> Any:
        if isinstance(reg, VCReg):
            return replace(reg, alpha=alpha, beta=beta)
        return reg.scaled(alpha) if hasattr(reg, "scaled") else reg

    return sites.map(change)


def batch_of(images: Images, draws: Draws, shape: tuple[int, int, int]) -> Batch:
    """The batch of one step, fields of `draws` (b,): cropped out of the padded images and mirrored."""
    height, width, _ = shape
    rows = draws.top[:, None] + jnp.arange(height)[None]
    across = jnp.arange(width)[None]
    columns = draws.left[:, None] + jnp.where(draws.mirrored[:, None], width - 1 - across, across)
    pixels = images.padded[draws.positions[:, None, None], rows[:, :, None], columns[:, None, :]]
    return {"image": pixels, "label": images.labels[draws.positions]}


def as_arrays(settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    """The settings field by field, each (k,)."""
    kinds = {"learning_rate": np.float32, "alpha": np.float32, "beta": np.float32, "seed": np.int32}
    return {name: np.array([getattr(own, name) for own in settings], kind) for name, kind in kinds.items()}


def draw(data: "Split", batch_size: int, settings: Sequence[Setting], steps: range) -> Draws:
    """What `train.trainer.loop` would draw for these steps, settings of the same seed alike."""
    of_seed = {}
    for seed in {own.seed for own in settings}:
        plans = [data.drawn(batch_size, seed, step) for step in steps]
        of_seed[seed] = [(positions, *moves) for positions, moves in plans]
    kinds = (np.int32, np.int32, np.int32, np.bool_)
    of_setting = (zip(*of_seed[own.seed], strict=True) for own in settings)
    stacked = zip(*([np.stack(values) for values in own] for own in of_setting), strict=True)
    return Draws(*(jnp.asarray(np.stack(values).astype(kind)) for values, kind in zip(stacked, kinds, strict=True)))


def on_devices(data: "Split", mesh: Mesh) -> Images:
    """All images of the split, a copy on every device."""
    images, labels = data.memory
    most = data.config.augment.max_shift
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    return jax.device_put(
        Images(jnp.asarray(padded), jnp.asarray(labels, jnp.int32)), NamedSharding(mesh, PartitionSpec())
    )


def evaluation_batches(data: "Split", batch_size: int) -> Batch:
    """All batches of `data.eval_batches` in one array each, (m, b, ...)."""
    batches = list(data.eval_batches(batch_size))
    return {name: jnp.asarray(np.stack([batch[name] for batch in batches])) for name in batches[0]}
