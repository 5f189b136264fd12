"""From records to batches of arrays, the same for any number of hosts, threads, processes and restarts.

The order and all random draws are functions of the seed and of a record's position in the stream, and every host
makes only the rows of each global batch that its devices hold. So the state of the data is the number of the step.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import absl.flags
import grain
import numpy as np
from PIL import Image

from train.augment import AugmentConfig, Moves, draw_moves, erase_box, eval_transform, move, train_transform
from train.config import DataConfig
from train.data import order
from train.data.images import BadImageError, read
from train.data.splits import Selection, select

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
    image_shape: tuple[int, int, int]  # in training
    eval_shape: tuple[int, int, int]
    train_transform: TrainTransform
    second_transform: TrainTransform | None  # for a second view of each training image
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

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int,
        group_size: int | None = None,
        rows: np.ndarray | None = None,
    ) -> Iterator[Batch]:
        """The batches of steps `start_step`, `start_step + 1`, ... without end; of each only `rows` (None: all).

        An image that is repeated stands in consecutive groups of `group_size` rows (None: the batch is one), as
        torchvision's `RASampler` gives its copies to consecutive GPUs.

        Epochs follow each other without a gap: a batch may hold the end of one and the start of the next. In place of
        an image that is left out (see `train.data.images.Policy`) stands the next one in the split.
        """
        rows, group_size = np.arange(batch_size) if rows is None else rows, group_size or batch_size
        if self.config.in_memory:
            return self._batches_from_memory(batch_size, seed, start_step, group_size, rows)
        places = grain.MapDataset.range(_ENDLESS).seed(seed)
        examples = places.random_map(functools.partial(self._train_example, seed, batch_size, group_size))
        return self._named(self._read(_Rows(examples, batch_size, rows).batch(len(rows))[start_step:]))

    def eval_batches(self, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Batch]:
        """The whole split in order, once, of each batch only `rows` (None: all); `mask` is False where one is padded.

        An image that is left out is masked.
        """
        rows = np.arange(batch_size) if rows is None else rows
        if self.config.in_memory:
            return self._padded_from_memory(batch_size, rows)
        padded = grain.MapDataset.range(math.ceil(len(self) / batch_size) * batch_size).map(self._eval_example)
        return self._named(self._read(_Rows(padded, batch_size, rows).batch(len(rows))))

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

    def _train_example(
        self, seed: int, batch_size: int, group_size: int, place: int, rng: np.random.Generator
    ) -> dict[str, Any]:
        epoch, turn = divmod(order.turn(int(place), batch_size, group_size), len(self))
        position = int(order.of_epoch(len(self), seed, epoch)[turn // self.config.repeats])
        for shown in range(position, position + len(self)):
            try:
                image, label = self.image(shown % len(self)), self.selection.targets[shown % len(self)]
            except BadImageError:
                if self.config.bad_images == "raise":
                    raise
                continue
            height, width, _ = self.image_shape
            is_synthetic = isinstance(image, np.ndarray)
            values = image[:height, :width] if is_synthetic else self.train_transform(image, rng)
            example = {"image": values, "label": label, "left_out": position if shown != position else -1}
            if self.second_transform is not None:
                example["second_image"] = values if is_synthetic else self.second_transform(image, rng)
            erase = self.config.augment.random_erase
            return example | ({"erase_box": erase_box(rng, height, width, erase)} if erase else {})
        raise ValueError(f"{self.selection.name} has no image that can be read.")

    def _eval_example(self, position: int) -> dict[str, Any]:
        nothing = {"image": np.zeros(self.eval_shape, np.uint8), "label": np.int32(0), "mask": False, "left_out": -1}
        if position >= len(self):
            return nothing
        try:
            image = self.image(position)
        except BadImageError:
            if self.config.bad_images == "raise":
                raise
            return nothing | {"left_out": position}
        height, width, _ = self.eval_shape
        values = image[:height, :width] if isinstance(image, np.ndarray) else self.eval_transform(image)
        return nothing | {"image": values, "label": self.selection.targets[position], "mask": True}

    def _read(self, stream: grain.MapDataset) -> Iterator[dict[str, np.ndarray]]:
        threads = self.config.reader_threads
        read_ahead = stream.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        if self.config.reader_processes:
            if not absl.flags.FLAGS.is_parsed():
                absl.flags.FLAGS.mark_as_parsed()  # Grain's processes ask for a flag of a program that has none
            read_ahead = read_ahead.mp_prefetch(grain.MultiprocessingOptions(self.config.reader_processes))
        try:
            yield from read_ahead
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise ChildProcessError(
                f"A process that reads data has ended ({error}). If memory ran out, set a lower data.reader_processes."
            ) from error

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
    def memory(self) -> tuple[np.ndarray, np.ndarray]:
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

    def _padded_from_memory(self, batch_size: int, rows: np.ndarray) -> Iterator[Batch]:
        images, labels = self.memory
        for start in range(0, len(images), batch_size):
            shown, mask = np.minimum(start + rows, len(images) - 1), start + rows < len(images)
            yield {"image": images[shown], "label": np.where(mask, labels[shown], 0), "mask": mask}

    def _batches_from_memory(
        self, batch_size: int, seed: int, start_step: int, group_size: int, rows: np.ndarray
    ) -> Iterator[Batch]:
        images, labels = self.memory
        for step in itertools.count(start_step):
            positions, moves = self.drawn(batch_size, seed, step, group_size)
            changed = move(images[positions], moves, self.config.augment.max_shift)
            yield {"image": changed[rows], "label": labels[positions[rows]]}

    def drawn(self, batch_size: int, seed: int, step: int, group_size: int | None = None) -> tuple[np.ndarray, Moves]:
        """Which of the images in memory are the batch of a step, and how each is moved."""
        count, augment = len(self.memory[0]), self.config.augment
        positions = order.of_step(count, batch_size, seed, step, group_size or batch_size, self.config.repeats)
        return positions, draw_moves(np.random.default_rng([seed, step]), batch_size, augment.max_shift, augment.flip)


class _Rows(grain.MapDataset):
    """Of each `batch_size` examples in a row those at `rows`."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(examples)
        self._batch_size, self._rows = batch_size, rows.tolist()

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[row]]


@functools.lru_cache(maxsize=32)
def load(config: DataConfig, split: str, label: str | None = None) -> Split:
    """A split of a prepared data set; `label` stands in for `config.label`.

    Raises:
      ValueError: for an unknown data set, split or label, with those that are known; for labels out of range; for
        images of many sizes that nothing crops; for transforms that cannot be.
    """
    selection = select(config, split, config.label if label is None else label)
    channels = config.channels or selection.stored_shape[2]
    height, width = _evaluated_size(config, selection)
    side = config.augment.crop_size
    image_shape = (side or height, side or width, channels)
    if config.name == "synthetic" and max(*image_shape[:2], height, width) > config.synthetic_size:
        raise ValueError(f"synthetic_size must be at least what the network sees, got {config.synthetic_size}.")
    if config.in_memory and replace(config.augment, max_shift=0, flip=0.0) != AugmentConfig():
        raise ValueError("Images in memory can be shifted and flipped, not augmented otherwise: leave in_memory out.")
    if config.second_view is not None and (config.in_memory or config.second_view.crop_size != side):
        raise ValueError(f"A second_view needs crop_size={side}, as the first one has, and images not in memory.")
    if config.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {config.repeats}.")
    first = train_transform(config.augment, config.evaluation)
    second = config.second_view and train_transform(config.second_view, config.evaluation)
    evaluated = eval_transform(config.evaluation)
    return Split(selection, config, image_shape, (height, width, channels), first, second, evaluated)


def _evaluated_size(config: DataConfig, selection: Selection) -> tuple[int, int]:
    """Height and width of what the evaluation transform returns."""
    height, width, _ = selection.stored_shape
    resize, crop = config.evaluation.resize, config.evaluation.crop
    if crop is not None:
        return crop, crop
    if resize is not None and height == width:
        height = width = resize if height is not None else None
    if height is None or width is None or (resize is not None and height != width):
        raise ValueError(
            f"The images of {config.name} have many sizes: set evaluation.resize and evaluation.crop, such as 256 "
            "and 224."
        )
    return height, width
