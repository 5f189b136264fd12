"""What a checkpoint's layers hold: Table 6 (CDNV, NCC, mutual information) and the same through the network's depth."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from numpy.typing import NDArray

import vcreg_jax as vc
from train.config import DataConfig, TrainConfig
from train.data import pipeline
from train.experiments import experiment
from train.interop import saved_config
from train.run.checkpoint_format import read_state, step_to_use
from train.trainer.evaluation import device_batches
from train.trainer.mesh import host_rows
from train.trainer.model import abstract_state, structure
from train.trainer.prepare import prepare
from train.trainer.step import Normalize, weights_to_use
from vcreg_jax import Sites, metrics

SPLITS = ("train", "test")
SIDE = 16  # to which larger images are reduced for the critic
PAIRS = {"train": 20_000, "test": 4_096}  # of image and features that the critic gets at most


@dataclass(frozen=True)
class Checkpoint:
    """One trained network of a run folder."""

    run: str  # the folder's name
    arm: str
    seed: int
    directory: Path
    train: TrainConfig
    sites: Sites


@dataclass(frozen=True)
class Layer:
    """The output of a block, or the features; means over positions are what has a class, all positions a spectrum.

    CDNV and both readings of NCC by split, the class means being the training split's for NCC and the split's own for
    CDNV. Agreement is None where the classes are not the network's.
    """

    name: str
    width: int
    cdnv: dict[str, float]
    ncc_agreement: dict[str, float | None]
    ncc_accuracy: dict[str, float]
    effective_rank: float  # of the training split's covariance
    singular_values: list[float]
    off_diagonal_rms: float
    mean_variance: float


@dataclass(frozen=True)
class Analysis:
    """What was found in one checkpoint."""

    run: str
    arm: str
    seed: int
    step: int
    layers: list[Layer]  # in the order of computation, the features last
    class_names: list[str]
    cosines: list[list[float]]  # between the classes' mean features, seen from the mean of all
    information: dict[str, float]  # `vc.mine.Estimate`, nats


class Remember:
    """The identity, which keeps what it is shown while a network is traced."""

    def __init__(self) -> None:
        self.seen: list[Array] = []

    def __call__(self, h: Array, /) -> Array:
        """`h` itself."""
        self.seen.append(h)
        return h


def checkpoints(folders: Sequence[Path]) -> list[Checkpoint]:
    """All trained networks in the run folders, in the order of arms and seeds.

    Raises:
      ValueError: for what is no run folder, or one without a checkpoint.
    """
    found = []
    for folder in folders:
        config = saved_config.load(folder)
        # Of more seeds than the folder began with, its config does not know.
        seeds = {arm: (folder / arm).glob("seed*/checkpoints/[0-9]*") for arm in config.arms}
        sites = {arm: candidates[0].sites for arm, candidates in experiment.arms(config).items()}
        own = [
            Checkpoint(folder.name, arm, seed, folder / arm / f"seed{seed}" / "checkpoints", config.train, sites[arm])
            for arm, saved in seeds.items()
            for seed in sorted({int(path.parent.parent.name.removeprefix("seed")) for path in saved})
        ]
        if not own:
            raise ValueError(f"{folder} holds no checkpoint yet.")
        found += own
    return found


def analyse(checkpoint: Checkpoint, data: DataConfig, settings: vc.mine.Settings) -> Analysis:
    """Everything about one checkpoint on the splits of `data`, in two passes over them.

    Raises:
      ValueError: for a data set whose images the network cannot take, or another model's checkpoint.
    """
    config = checkpoint.train
    run = prepare(config, checkpoint.sites.map(lambda _, reg: vc.identity))
    splits = {name: pipeline.load(data, name) for name in SPLITS}
    supervised = config.joint_embedding is None  # else the outputs are no classes
    own_classes = supervised and pipeline.load(config.data, "train").class_names == splits["train"].class_names
    if (shape := splits["train"].eval_shape)[2] != run.data.image_shape[2]:
        raise ValueError(
            f"{checkpoint.run} was trained on {run.data.image_shape[2]} channels, {data.name} has {shape}."
        )
    remember = Remember()
    sites = checkpoint.sites.map(lambda name, _: remember if name == "block" else vc.identity)
    graphdef, _ = structure(replace(run.architecture, sites=sites))
    like = abstract_state(run.architecture, run.optimizer, run.mesh, config.ema is not None, config.guard)
    step = step_to_use(checkpoint.directory)
    assert step is not None  # `checkpoints` has found one
    with jax.set_mesh(run.mesh):
        state, _ = read_state((checkpoint.directory / str(step)).absolute(), like)
        weights = weights_to_use(state)
        layers_of = functools.partial(_layers(graphdef, Normalize(data.mean, data.std), remember), *weights)
        look = functools.partial(_batches, layers_of, config.batch_size, run.mesh)
        return _measure(checkpoint, step, splits, look, own_classes, settings)


def _layers(graphdef: nnx.GraphDef, normalize: Normalize, remember: Remember) -> Any:
    @jax.jit
    def layers(params: dict, batch_stats: dict, images: Array) -> tuple[Array, list[Array], Array]:
        """Logits, every block's output and the features, and the images as the critic sees them."""
        remember.seen.clear()
        x = normalize(images)
        logits, features = nnx.merge(graphdef, params, batch_stats)(x)
        outputs = [*remember.seen, features]
        remember.seen.clear()
        b, h, w, c = x.shape
        small = jax.image.resize(x, (b, min(h, SIDE), min(w, SIDE), c), "linear")
        return logits, outputs, small.reshape(b, -1)

    return layers


def _batches(layers_of: Any, batch_size: int, mesh: Mesh, split: pipeline.Split) -> Iterator[Any]:
    """Per batch: logits, layer outputs, small images, and labels with -1 for padding."""
    for batch in device_batches(split.eval_batches(batch_size, host_rows(mesh, batch_size)), mesh):
        yield *layers_of(batch["image"]), jnp.where(batch["mask"], batch["label"], -1)


@functools.partial(jax.jit, static_argnums=2)
def _first_pass(outputs: list[Array], labels: Array, num_classes: int) -> Any:
    means = [metrics.class_means(_pool(h), labels, num_classes) for h in outputs]
    return means, [metrics.moments(h, labels >= 0) for h in outputs]


@jax.jit
def _second_pass(
    outputs: list[Array], logits: Array, labels: Array, own: list[metrics.ClassMeans], train: list[metrics.ClassMeans]
) -> Any:
    """Spread around the split's own means, and rows whose nearest training mean is the predicted or right class."""
    found = []
    for h, own_means, train_means in zip(outputs, own, train, strict=True):
        nearest, counted = metrics.nearest_class(_pool(h), train_means), labels >= 0
        hits = {"agreement": nearest == logits.argmax(axis=-1), "accuracy": nearest == labels, "count": counted}
        sums = {name: jnp.sum(hit & counted, dtype=jnp.float32) for name, hit in hits.items()}
        found.append((metrics.class_spread(_pool(h), labels, own_means.means), sums))
    return found


def _pool(h: Array) -> Array:
    """The mean over positions."""
    return h.mean(axis=tuple(range(1, h.ndim - 1)), dtype=jnp.promote_types(h.dtype, jnp.float32))


def _merge(parts: Iterator[Any], is_leaf: Any) -> Any:
    """Sums over batches in float64: `merge` for what has it, else plain sums."""
    total = None
    for part in parts:
        host = jax.tree.map(np.float64, jax.device_get(part))
        join = lambda a, b: a.merge(b) if hasattr(a, "merge") else a + b  # noqa: E731
        total = host if total is None else jax.tree.map(join, total, host, is_leaf=is_leaf)
    return total


def _mergeable(node: Any) -> bool:
    return hasattr(node, "merge")


def _measure(
    checkpoint: Checkpoint, step: int, splits: Any, look: Any, own_classes: bool, settings: vc.mine.Settings
) -> Analysis:
    classes = splits["train"].num_classes
    first = {
        name: _merge((_first_pass(outputs, y, classes) for _, outputs, _, y in look(split)), _mergeable)
        for name, split in splits.items()
    }
    means = {name: found[0] for name, found in first.items()}
    second, pairs = {}, {}
    for name, split in splits.items():
        kept: list[Any] = []
        passes = _keeping(look(split), kept, PAIRS[name])
        on_device = jax.tree.map(jnp.float32, (means[name], means["train"]))
        second[name] = _merge((_second_pass(h, logits, y, *on_device) for logits, h, _, y in passes), _mergeable)
        pairs[name] = [jnp.asarray(np.concatenate(part)[: PAIRS[name]]) for part in zip(*kept, strict=True)]
    names = [*(f"block {i + 1}" for i in range(len(means["train"]) - 1)), "features"]
    layers = [
        _layer(name, i, {s: means[s][i].means for s in splits}, first["train"][1][i], second, own_classes)
        for i, name in enumerate(names)
    ]
    estimate = vc.mine.estimate(*pairs["train"], *pairs["test"], key=jax.random.key(0), settings=settings)
    return Analysis(
        *(checkpoint.run, checkpoint.arm, checkpoint.seed, step, layers, splits["train"].class_names),
        cosines(means["train"][-1].means).tolist(),
        estimate._asdict(),
    )


def _keeping(batches: Iterator[Any], kept: list[Any], most: int) -> Iterator[Any]:
    """The batches; of the first `most` rows small images and features are put aside on the host."""
    rows = 0
    for batch in batches:
        if rows < most:
            wanted = {"x": batch[2], "z": batch[1][-1], "y": batch[3]}
            found = multihost_utils.process_allgather(wanted, tiled=True)
            counted = found["y"] >= 0
            kept.append([found[name][counted].astype(np.float32) for name in "xz"])
            rows += int(counted.sum())
        yield batch


def _layer(name: str, i: int, centres: Any, moments: metrics.Moments, second: Any, own_classes: bool) -> Layer:
    covariance = moments.covariance()
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0))  # float64, on the host
    shares = {
        s: {key: hits / sums["count"] for key, hits in sums.items()} for s in SPLITS for sums in [second[s][i][1]]
    }
    statistics = metrics.covariance_statistics(covariance)
    return Layer(
        name=name,
        width=len(covariance),
        cdnv={s: float(metrics.cdnv_of(second[s][i][0], centres[s])) for s in SPLITS},
        ncc_agreement={s: float(shares[s]["agreement"]) if own_classes else None for s in SPLITS},
        ncc_accuracy={s: float(shares[s]["accuracy"]) for s in SPLITS},
        effective_rank=float(metrics.entropy_rank(values)),
        singular_values=values.tolist(),
        off_diagonal_rms=float(statistics.off_diagonal_rms),
        mean_variance=float(statistics.mean_variance),
    )


def cosines(means: NDArray) -> NDArray:
    """Cosines between k class means seen from the mean of all; -1 / (k - 1) throughout when they are a simplex."""
    apart = means - means.mean(axis=0)
    norms = np.linalg.norm(apart, axis=1, keepdims=True)
    directions = apart / np.where(norms > 0, norms, 1)
    return directions @ directions.T
