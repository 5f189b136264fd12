"""Frozen features of a whole split."""

from collections.abc import Callable

import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from train.data.pipeline import Split
from train.loop import Predict, device_batches
from train.mesh import host_rows


def extract(
    predict: Predict, data: Split, batch_size: int, mesh: Mesh, boundary: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n, d) and labels int32 (n,) of every example of `data`, in order, on every host.

    `boundary` is called at every batch.
    """
    features, labels = [], []
    for batch in device_batches(data.eval_batches(batch_size, host_rows(mesh, batch_size)), mesh):
        boundary()
        rows = {"features": predict(batch["image"])[1], "label": batch["label"], "mask": batch["mask"]}
        rows = multihost_utils.process_allgather(rows, tiled=True)
        features.append(rows["features"][rows["mask"]].astype(np.float32))
        labels.append(rows["label"][rows["mask"]])
    return np.concatenate(features), np.concatenate(labels)
