"""Which records of which prepared data set make up a split, and what their target is."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.config import DataConfig
from train.data import builders, hashes, labels
from train.data.synthetic import SyntheticImages
from train.data.views import VIEWS, View, long_tail_indices, superclasses

LONGEST_EVALUATION = 50_000  # synthetic images


@dataclass(frozen=True)
class Selection:
    """The records of a split, in order, with their targets."""

    name: str  # for messages
    records: Any  # random access to dicts with `image` and perhaps `file`
    indices: np.ndarray  # int64 (n,), of `records`
    targets: np.ndarray  # int32 (n,)
    class_names: list[str]
    stored_shape: tuple[int | None, int | None, int]  # None: images differ
    content: str  # the hash of all images and labels of which these are a part

    def fingerprint(self) -> str:
        """What tells this split from another: all its images and labels, which of them, and the classes' names."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for numbers in (self.indices, self.targets):
            digest.update(np.asarray(numbers, np.int64).tobytes())
        digest.update(self.content.encode())
        return digest.hexdigest()


def select(config: DataConfig, split: str, label: str) -> Selection:
    """The records of `split` ("train", "validation" or "test", or in TFDS's notation) with `label` as the target.

    Raises:
      ValueError: for an unknown data set, split or label, with those that are known, and for labels out of range.
    """
    if config.name == "synthetic":
        return _synthetic(config, split, label)
    view = VIEWS.get(config.name, View(config.name))
    builder = builders.prepared(view.of, config.directory)
    base, start, stop = _range(builder, getattr(config, f"{split}_split", split), config.name)
    content = hashes.check(Path(builder.data_path), base)
    indices = np.arange(start, stop)
    known = ["superclass", "subclass"] if view.superclasses else labels.fields(builder.info.features)
    if label not in known:
        raise ValueError(f"Unknown label of {config.name}: {label!r}. Known: {', '.join(sorted(known))}.")
    if view.superclasses:
        indices, targets, names = _of_superclasses(builder, base, indices, view.superclasses, label)
    else:
        targets = labels.of_split(builder, base, label)[start:stop]
        names = builder.info.features[label].names
    ratio = config.long_tail or view.long_tail
    if ratio is not None and base == "train" and split not in ("validation", "test"):
        # The tail is that of the label that is trained on, whatever is asked of the images afterwards.
        trained_on = labels.of_split(builder, base, config.label)[start:stop]
        kept = long_tail_indices(trained_on, builder.info.features[config.label].num_classes, ratio)
        indices, targets = indices[kept], targets[kept]
    records = builder.as_data_source(base, decoders={"image": tfds.decode.SkipDecoding()})
    shape = builder.info.features["image"].shape
    return Selection(f"{config.name} {split}", records, indices, targets, names, shape, content)


def _range(builder: Any, wanted: str, name: str) -> tuple[str, int, int]:
    """A split's name and the part of it, of TFDS's notation."""
    known = list(builder.info.splits)
    if wanted.partition("[")[0] not in known:
        raise ValueError(
            f"Unknown split of {name}: {wanted!r}. Known: {', '.join(known)}; parts such as 'train[90%:]' too "
            "(train_split, validation_split and test_split of the data's config). Images of one's own may be prepared "
            "with --val and --test."
        )
    try:
        (part,) = tfds.core.ReadInstruction.from_spec(wanted).to_absolute(builder.info.splits)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{name} has no split {wanted!r}: {error}") from error
    start, stop = part.from_ or 0, part.to if part.to is not None else builder.info.splits[part.splitname].num_examples
    if stop <= start:
        raise ValueError(f"The split {wanted!r} of {name} is empty.")
    return part.splitname, start, stop


def _of_superclasses(
    builder: Any, base: str, indices: np.ndarray, name: str, label: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    part = superclasses(name)
    wnids = builder.info.features["label"].names
    subclass_of = np.full(len(wnids), -1, np.int32)
    for subclass, wnid in enumerate(part.wnids):
        subclass_of[wnids.index(wnid)] = subclass
    subclasses = subclass_of[labels.of_split(builder, base, "label")[indices]]
    kept, subclasses = indices[subclasses >= 0], subclasses[subclasses >= 0]
    if label == "subclass":
        return kept, subclasses, part.wnids
    return kept, np.array(part.superclass_of, np.int32)[subclasses], part.names


def _synthetic(config: DataConfig, split: str, label: str) -> Selection:
    shape = (config.synthetic_size, config.synthetic_size, config.channels or 3)
    count = config.synthetic_images if split == "train" else min(config.synthetic_images, LONGEST_EVALUATION)
    records = SyntheticImages(count, shape, config.synthetic_classes)
    indices = np.arange(count)
    targets = (indices % config.synthetic_classes).astype(np.int32)
    names = [str(index) for index in range(config.synthetic_classes)]
    return Selection(f"synthetic {split} ({label})", records, indices, targets, names, shape, repr(records))
