"""From records to batches of arrays, the same for any number of hosts, threads, processes and restarts.

The order and all random draws are functions of the seed and of a record's position in the stream, and host p of P
takes every P-th slice of each global batch. So the state of the data is the number of the step.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import absl.flags
import grain
import jax
import numpy as np
from PIL import Image

from train.config import DataConfig
from train.data.images import BadImageError, read
from train.data.splits import Selection, select
from train.data.transforms import CentreSquare, ShiftAndFlip, shifted_and_flipped

Batch = dict[str, np.ndarray]  # image: uint8 (b, h, w, c); label: int32 (b,); mask: bool (b,), False for padding
TrainTransform = Callable[[Image.Image, np.random.Generator], np.ndarray]
EvalTransform = Callable[[Image.Image], np.ndarray]
_ENDLESS = 2**62  # examples
_READ_AT_ONCE = 1000  # records
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One split of a prepared data set, with one of its labels as the target."""

    selection: Selection
    config: DataConfig
    image_shape: tuple[int, int, int]  # of what the transforms return
    train_transform: TrainTransform
    eval_transform: EvalTransform

    def __len__(self) -> int:
        return len(self.selection.indices)

    @property
    def class_names(self) -> list[str]:
        """What the label's values stand for."""
        return self.selection.class_names

    @property
    def num_classes(self) -> int:
        """How many classes the label has."""
        return len(self.class_names)

    def labels(self) -> np.ndarray:
        """The labels in the split's order, int32 (n,)."""
        return self.selection.targets

    def train_batches(self, batch_size: int, seed: int, start_step: int) -> Iterator[Batch]:
        """This host's part of the batches of steps `start_step`, `start_step + 1`, ... without end.

        Epochs follow each other without a gap: a batch may hold the end of one and the start of the next. In place of
        an image that is left out (see `train.data.images.Policy`) stands the next one in the split.
        """
        hosts, host = jax.process_count(), jax.process_index()
        if self.config.in_memory:
            return self._batches_from_memory(batch_size, seed, start_step)
        places = grain.MapDataset.range(_ENDLESS).seed(seed)
        examples = places.random_map(functools.partial(self._train_example, seed))
        stream = examples.batch(batch_size // hosts)[start_step * hosts + host :: hosts]
        return self._named(self._read(stream))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """This host's part of the whole split in order, once; the last batch is padded and `mask` says where.

        An image that is left out is masked.
        """
        hosts, host = jax.process_count(), jax.process_index()
        padded = grain.MapDataset.range(math.ceil(len(self) / batch_size) * batch_size)
        return self._named(self._read(padded.map(self._eval_example).batch(batch_size // hosts)[host::hosts]))

    def image(self, position: int) -> Image.Image | np.ndarray:
        """The image at `position` of the split before any transform; synthetic ones are arrays.

        Raises:
          BadImageError: naming it, if it is to be left out.
        """
        index = int(self.selection.indices[position])
        return self.opened(index, self.selection.records[index])

    def opened(self, index: int, record: dict[str, Any]) -> Image.Image | np.ndarray:
        """The image of a record that has been read."""
        if isinstance(record["image"], np.ndarray):
            return record["image"]
        try:
            return read(record["image"], self.image_shape[2], self.config.bad_images)
        except BadImageError as error:
            file = record.get("file", b"")  # which data sets of others lack
            raise BadImageError(f"{self.selection.name}: image {index} {file.decode()}: {error}") from error

    def _train_example(self, seed: int, place: int, rng: np.random.Generator) -> dict[str, Any]:
        epoch, row = divmod(int(place), len(self))
        position = int(_order(len(self), seed, epoch)[row])
        for shown in range(position, position + len(self)):
            try:
                image, label = self.image(shown % len(self)), self.selection.targets[shown % len(self)]
            except BadImageError:
                if self.config.bad_images == "raise":
                    raise
                continue
            values = image if isinstance(image, np.ndarray) else self.train_transform(image, rng)
            return {"image": values, "label": label, "left_out": position if shown != position else -1}
        raise ValueError(f"{self.selection.name} has no image that can be read.")

    def _eval_example(self, position: int) -> dict[str, Any]:
        nothing = {"image": np.zeros(self.image_shape, np.uint8), "label": np.int32(0), "mask": False, "left_out": -1}
        if position >= len(self):
            return nothing
        try:
            image = self.image(position)
        except BadImageError:
            if self.config.bad_images == "raise":
                raise
            return nothing | {"left_out": position}
        values = image if isinstance(image, np.ndarray) else self.eval_transform(image)
        return nothing | {"image": values, "label": self.selection.targets[position], "mask": True}

    def _read(self, stream: grain.MapDataset) -> Iterator[dict[str, np.ndarray]]:
        threads = self.config.reader_threads
        read_ahead = stream.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        if self.config.reader_processes:
            if not absl.flags.FLAGS.is_parsed():
                absl.flags.FLAGS.mark_as_parsed()  # Grain's processes ask for a flag of a program that has none
            read_ahead = read_ahead.mp_prefetch(grain.MultiprocessingOptions(self.config.reader_processes))
        return iter(read_ahead)

    def _named(self, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[Batch]:
        """The batches; images that were left out of one are logged, once each."""
        seen: set[int] = set()
        for batch in batches:
            left_out = batch.pop("left_out")
            for position in set(left_out[left_out >= 0].tolist()) - seen:
                seen.add(position)
                _log.warning("left out: %s (%d so far)", self._why(position), len(seen))
            yield batch

    def _why(self, position: int) -> str:
        try:
            self.image(position)
        except BadImageError as error:
            return str(error)
        return f"image {position} could not be read then, but can now"

    @functools.cached_property
    def _memory(self) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels of the split, without those that are left out."""
        images, left_out = [], []
        for some in np.array_split(np.arange(len(self)), math.ceil(len(self) / _READ_AT_ONCE)):
            indices = self.selection.indices[some].tolist()
            for position, index, record in zip(
                some, indices, self.selection.records.__getitems__(indices), strict=True
            ):
                try:
                    image = self.opened(index, record)
                except BadImageError as error:
                    if self.config.bad_images == "raise":
                        raise
                    left_out.append(position)
                    _log.warning("left out: %s (%d so far)", error, len(left_out))
                    continue
                images.append(image if isinstance(image, np.ndarray) else self.eval_transform(image))
        return np.stack(images), np.delete(self.selection.targets, left_out)

    def _batches_from_memory(self, batch_size: int, seed: int, start_step: int) -> Iterator[Batch]:
        hosts, host = jax.process_count(), jax.process_index()
        rows = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
        images, labels = self._memory
        for step in itertools.count(start_step):
            epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), len(images))
            orders = [_order(len(images), seed, epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
            positions = np.concatenate(orders)
            rng = np.random.default_rng([seed, step])
            changed = shifted_and_flipped(images[positions], rng, self.config.max_shift, self.config.flip)
            yield {"image": changed[rows], "label": labels[positions[rows]]}


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: all of it is drawn at once, and the same with and without `in_memory`."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def load(
    config: DataConfig,
    split: str,
    label: str | None = None,
    train_transform: TrainTransform | None = None,
    eval_transform: EvalTransform | None = None,
) -> Split:
    """A split of a prepared data set; `label` stands in for `config.label`.

    Transforms take images in mode L or RGB and return uint8 (image_size, image_size, channels); without them, images
    are resized, shifted and flipped as `config` says.

    Raises:
      ValueError: for an unknown data set, split or label, with those that are known; for labels out of range; for
        images of many sizes without an `image_size`.
    """
    selection = select(config, split, config.label if label is None else label)
    height, width, channels = selection.stored_shape
    if config.image_size is not None:
        height = width = config.image_size
    if height is None or width is None:
        raise ValueError(f"The images of {config.name} have many sizes: set image_size, such as 224.")
    train_transform = train_transform or ShiftAndFlip(config.image_size, config.max_shift, config.flip)
    eval_transform = eval_transform or CentreSquare(config.image_size)
    shape = (height, width, config.channels or channels)
    return Split(selection, config, shape, train_transform, eval_transform)
