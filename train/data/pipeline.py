"""From records to batches of arrays, the same for any number of hosts, threads and restarts.

The order and all random draws are functions of the seed and of a record's position in the stream, and host p of P
takes every P-th slice of each global batch. So the state of the data is the number of the step.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from train.augment import shifted
from train.config import DataConfig
from train.data import builders

Batch = dict[str, np.ndarray]  # image: uint8 (b, h, w, c); label: int32 (b,); mask: bool (b,), False for padding


@dataclass(frozen=True)
class Split:
    """One split of a prepared data set, with `label` as the target."""

    records: Any  # random access to records with encoded images
    label: str
    image_shape: tuple[int, int, int]
    class_names: list[str]
    max_shift: int
    reader_threads: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_classes(self) -> int:
        """How many classes the label has."""
        return len(self.class_names)

    def train_batches(self, batch_size: int, seed: int, start_step: int) -> Iterator[Batch]:
        """This host's part of the batches of steps `start_step`, `start_step + 1`, ... without end.

        Epochs follow each other without a gap: a batch may hold the end of one and the start of the next.
        """
        hosts, host = jax.process_count(), jax.process_index()
        stream = (
            grain.MapDataset.source(self.records)
            .seed(seed)
            .shuffle()
            .repeat()
            .map(self._decoded)
            .random_map(self._augmented)
            .batch(batch_size // hosts)
        )[start_step * hosts + host :: hosts]
        threads = grain.ReadOptions(num_threads=self.reader_threads, prefetch_buffer_size=2 * self.reader_threads)
        return iter(stream.to_iter_dataset(threads))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """This host's part of the whole split in order, once; the last batch is padded and `mask` says where."""
        hosts, host = jax.process_count(), jax.process_index()
        rows = batch_size // hosts
        for start in range(host * rows, math.ceil(len(self) / batch_size) * batch_size, batch_size):
            indices = range(start, min(start + rows, len(self)))
            decoded = [self._decoded(self.records[index]) for index in indices]
            padding = {"image": np.zeros(self.image_shape, np.uint8), "label": np.int32(0)}
            decoded += [padding] * (rows - len(decoded))
            batch = {key: np.stack([record[key] for record in decoded]) for key in padding}
            yield batch | {"mask": np.arange(rows) < len(indices)}

    def labels(self) -> np.ndarray:
        """The labels in the split's order, int32 (n,)."""
        return np.array([self.records[index][self.label] for index in range(len(self))], np.int32)

    def _augmented(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.max_shift == 0:
            return example
        return example | {"image": shifted(example["image"], rng, self.max_shift)}

    def _decoded(self, record: dict[str, Any]) -> dict[str, Any]:
        pixels = np.asarray(Image.open(io.BytesIO(record["image"])))
        return {"image": pixels.reshape(self.image_shape), "label": np.int32(record[self.label])}


def load(config: DataConfig, split: str, label: str | None = None) -> Split:
    """A split of a data set, prepared on first use; `label` stands in for `config.label`.

    Raises:
      ValueError: for an unknown data set, split or label, with those that are known.
    """
    builder: Any = builders.prepared(config.name, config.directory)
    label = config.label if label is None else label
    features = builder.info.features
    labels = [name for name, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    _require(label, labels, f"label of {config.name}")
    _require(split, list(builder.info.splits), f"split of {config.name}")
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return Split(
        records, label, features["image"].shape, features[label].names, config.max_shift, config.reader_threads
    )


def _require(name: str, known: list[str], what: str) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what}: {name!r}. Known: {', '.join(known)}.")
