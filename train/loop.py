"""One supervised training run, read top to bottom."""

import collections
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from train import mesh as meshes
from train.augment import check_mix
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.data import pipeline
from train.log import Bar, DataWait, MetricsFile, Rate
from train.model import Architecture, create_state, structure
from train.optim import make_optimizer
from train.step import Normalize, State, eval_sums, make_predict, make_train_step, weights_to_use
from vcreg_jax import Sites

Predict = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # images -> (logits, features)


@dataclass(frozen=True)
class Trained:
    """A trained network on its mesh, ready to predict."""

    state: State
    mesh: Mesh
    predict: Predict
    validation_accuracy: float  # share of correct labels of the training task


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs that can be wrong, found to be right."""

    mesh: Mesh
    data: pipeline.Split
    validation: pipeline.Split
    architecture: Architecture
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation


def prepare(config: TrainConfig, sites: Sites) -> Prepared:
    """What `train` works with; nothing is allocated yet.

    Raises:
      ValueError: for a config that cannot run.
    """
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch_size(config.batch_size, mesh)
    check_mix(config.mix, config.batch_size, config.data.repeats)
    data = pipeline.load(config.data, "train")
    validation = pipeline.load(config.data, "validation")
    architecture = Architecture(config.model, data.num_classes, data.image_shape, sites)
    graphdef, norms = structure(architecture)
    optimizer = make_optimizer(config.optimizer, config.steps, norms)
    return Prepared(mesh, data, validation, architecture, graphdef, optimizer)


def train(config: TrainConfig, sites: Sites, seed: int, directory: Path, title: str) -> Trained:
    """Trains to `config.steps`, going on from the newest checkpoint under `directory` if there is one.

    Writes `metrics.jsonl` and `checkpoints/`. The order within a step is fixed: evaluate, save, step, log.
    """
    run = prepare(config, sites)
    normalize = Normalize(config.data.mean, config.data.std)
    train_step = make_train_step(
        run.graphdef, run.optimizer, normalize, config.label_smoothing, run.mesh, config.ema, config.mix
    )
    predict_with = make_predict(run.graphdef, normalize)

    directory.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(run.mesh), Checkpoints(directory / "checkpoints", config.keep_checkpoints) as checkpoints:
        state = create_state(run.architecture, run.optimizer, run.mesh, seed, config.ema is not None)
        if (start := checkpoints.latest_step()) is not None:
            state = checkpoints.restore(start, like=state)
        start = start or 0
        metrics_file = MetricsFile(directory / "metrics.jsonl", start)
        stream = run.data.train_batches(config.batch_size, seed, start, config.mix.group_size)
        batches = DataWait(device_batches(stream, run.mesh))
        accuracy = 0.0
        rate = Rate(config.batch_size)
        with Bar(title, config.steps, start) as bar:
            for step in range(start, config.steps + 1):
                last = step == config.steps
                if last or step % config.eval_every == 0:
                    predict = functools.partial(predict_with, *weights_to_use(state))
                    metrics = evaluate(predict, run.validation, config.batch_size, run.mesh)
                    if config.monitor_images:
                        from train import monitor  # which builds on this file

                        metrics |= monitor.watch(predict, run.data, run.validation, config, run.mesh)
                    metrics_file.write(step, "validation", metrics)
                    accuracy = metrics["accuracy"]
                    bar.line(f"step {step}/{config.steps}  validation accuracy {accuracy:.1%}  {rate}")
                if last or (step % config.save_every == 0 and step > start):
                    checkpoints.save(step, state)
                if last:
                    break
                state, metrics = train_step(state, next(batches), seed)
                if step % config.log_every == 0:
                    metrics_file.write(step, "train", metrics | {"data_wait": batches.share()})
                    rate.update(step)
                    bar.update(step, f"loss {metrics['loss']:.4f}  {rate}")
    return Trained(state, run.mesh, functools.partial(predict_with, *weights_to_use(state)), accuracy)


def evaluate(predict: Predict, data: pipeline.Split, batch_size: int, mesh: Mesh) -> dict[str, float]:
    """Mean loss and accuracy over the whole split, every example counted once."""
    totals = {"loss": 0.0, "accuracy": 0.0, "count": 0.0}
    for batch in device_batches(data.eval_batches(batch_size), mesh):
        logits, _ = predict(batch["image"])
        sums = jax.device_get(eval_sums(logits, batch["label"], batch["mask"]))
        totals = {name: totals[name] + float(sums[name]) for name in totals}
    return {name: totals[name] / totals["count"] for name in ("loss", "accuracy")}


def device_batches(batches: Iterator[pipeline.Batch], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Batches as global arrays on the mesh; the next two are on their way while one is used."""
    on_their_way = collections.deque()
    for batch in batches:
        on_their_way.append(meshes.to_devices(batch, mesh))
        if len(on_their_way) > 2:
            yield on_their_way.popleft()
    yield from on_their_way
