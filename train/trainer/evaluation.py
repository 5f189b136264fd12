"""A trained network, and what it makes of a split."""

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from train.data import pipeline
from train.trainer import mesh as meshes
from train.trainer.step import State, eval_sums

Predict = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # images -> (logits, features)


@dataclass(frozen=True)
class Trained:
    """A trained network on its mesh, ready to predict."""

    state: State
    mesh: Mesh
    predict: Predict
    validation_accuracy: float  # share of correct labels of the training task
    step: int = 0  # at which it had these weights; 0 for weights that were given


def evaluate(
    predict: Predict,
    data: pipeline.Split,
    batch_size: int,
    mesh: Mesh,
    boundary: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss and accuracy over the whole split, every example counted once; `boundary` is called at every batch."""
    totals = {"loss": 0.0, "accuracy": 0.0, "count": 0.0}
    for batch in device_batches(data.eval_batches(batch_size, meshes.host_rows(mesh, batch_size)), mesh):
        boundary()
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
