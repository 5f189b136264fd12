"""Frozen features of a whole split, in order: batch by batch, so that a split of any size takes a batch's memory."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from train.config import TrainConfig
from train.data.pipeline import Split
from train.files import json_files
from train.run.folder import as_json, file_hash, write_json
from train.run.watchdog import Watchdog
from train.trainer.evaluation import Predict, Trained, device_batches
from train.trainer.mesh import host_rows
from train.trainer.step import weights_to_use

_FILES = ("features.bin", "labels.bin")


def stream(
    predict: Predict, data: Split, batch_size: int, mesh: Mesh, boundary: Callable[[], None] = lambda: None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features float32 (b, d) and labels int32 (b,) of batch after batch of `data`, without padding, on every host.

    `boundary` is called at every batch.
    """
    for batch in device_batches(data.eval_batches(batch_size, host_rows(mesh, batch_size)), mesh):
        boundary()
        rows = {"features": predict(batch["image"])[1], "label": batch["label"], "mask": batch["mask"]}
        rows = multihost_utils.process_allgather(rows, tiled=True)
        yield rows["features"][rows["mask"]].astype(np.float32), rows["label"][rows["mask"]].astype(np.int32)


def extract(
    predict: Predict, data: Split, batch_size: int, mesh: Mesh, boundary: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n, d) and labels int32 (n,) of every example of `data`, in order, on every host, in memory."""
    features, labels = zip(*stream(predict, data, batch_size, mesh, boundary), strict=True)
    return np.concatenate(features), np.concatenate(labels)


def extract_cached(folder: Path, trained: Trained, train: TrainConfig, data: Split) -> tuple[np.ndarray, np.ndarray]:
    """As `extract`, as read-only maps of files under `folder`, computed where they are not there yet.

    The files lie in a folder named by a hash of all that they depend on: the network and every one of its weights, its
    normalization of pixels, and the images: which records of which prepared files, and how they are read and cropped.
    So the features of other weights or images are never taken for these. All hosts must see `folder`.

    Raises:
      ValueError: for files that are not those which were written there, saying which to delete.
    """
    described = _describe(trained, train, data)
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
    place = folder / key
    if not (place / "index.json").exists():
        with jax.set_mesh(trained.mesh), Watchdog(train.hang_seconds) as watchdog:
            watchdog.compiled()
            beat = functools.partial(watchdog.beat, "a batch of features")
            _write(place, stream(trained.predict, data, train.batch_size, trained.mesh, beat), described)
    return _open(place, described)


def _write(place: Path, batches: Iterator[tuple[np.ndarray, np.ndarray]], described: dict[str, Any]) -> None:
    """The first host writes; the index comes last, so that an interrupted run leaves no cache."""
    rows, width, is_first = 0, 0, jax.process_index() == 0
    if is_first:
        place.mkdir(parents=True, exist_ok=True)
    paths = [place / name if is_first else Path("/dev/null") for name in _FILES]
    digests = [hashlib.sha256() for _ in _FILES]
    with paths[0].open("wb") as features_file, paths[1].open("wb") as labels_file:
        for arrays in batches:
            for array, file, digest in zip(arrays, (features_file, labels_file), digests, strict=True):
                written = np.ascontiguousarray(array).tobytes()
                file.write(written)
                digest.update(written)
            rows, width = rows + len(arrays[0]), arrays[0].shape[1]
    if is_first:
        hashes = [digest.hexdigest() for digest in digests]
        write_json(place / "index.json", {"shape": [rows, width], "files_sha256": hashes, **described})
    multihost_utils.sync_global_devices(place.name)


def _open(place: Path, described: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    try:
        index = json_files.read(place / "index.json")
        rows, width = index.pop("shape")
        hashes = index.pop("files_sha256")
        there = [file_hash(place / name) for name in _FILES]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{place} cannot be read ({error}). Delete it, and features are computed anew.") from None
    if index != described or there != hashes:
        raise ValueError(
            f"{place} holds features of other weights or images, or is damaged. Delete it, and they are computed anew."
        )
    features = np.memmap(place / _FILES[0], np.float32, "r", shape=(rows, width))
    return features, np.memmap(place / _FILES[1], np.int32, "r", shape=(rows,))


def _describe(trained: Trained, train: TrainConfig, data: Split) -> dict[str, Any]:
    """All that decides the features, as what JSON can hold."""
    config, selection = data.config, data.selection
    return {
        "model": as_json(train.model),
        "weights": _hash(weights_to_use(trained.state)),
        "pixels": [list(train.data.mean), list(train.data.std)],
        "images": [config.name, selection.name, config.bad_images, list(data.eval_shape), as_json(config.evaluation)],
        "data": selection.fingerprint(),
    }


def _hash(arrays: Any) -> str:
    """Of names, shapes, types and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
