"""Preparing data sets as TFDS `array_record`, without TensorFlow, and finding those that are prepared."""

import contextlib
import itertools
import json
import re
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from train.data import hashes, images, labels, packed
from train.data.archives import Files
from train.data.catalog import KNOWN, DataSet
from train.data.images import BadImageError, Policy
from train.data.sources import Contents, Example, class_folders
from train.data.views import VIEWS
from train.files import whole_files

VERSION = "1.0.0"
BAD_IMAGES = "bad_images.json"  # beside a prepared data set: what was left out or is converted when read, and why
# What the features of an image data set are made of: TFDS imports whatever module `features.json` names.
_FEATURES = (
    "FeaturesDict",
    "Image",
    "ClassLabel",
    "Text",
    "Scalar",
    "Tensor",
    "Sequence",
    "BBoxFeature",
    "LabeledImage",
)
_OUTCOME = {True: "converted when read", False: "left out"}
_THREADS, _AHEAD = 8, 256


class Bad(NamedTuple):
    """An image that is not plain."""

    split: str
    file: str
    flaw: str
    kept: bool


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Any data set: images stay the encoded files that they are, and records keep the order of the source."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, name: str, contents: Contents, homepage: str, policy: Policy, directory: Path):
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]  # as TFDS's own AdhocBuilder sets it
        self._contents, self._homepage, self._policy = contents, homepage, policy
        self.bad = [Bad("", file, reason, False) for file, reason in contents.unused]
        self.labels: dict[str, dict[str, list[int]]] = {}
        self.contents: dict[str, hashes.Content] = {}
        super().__init__(data_dir=directory, file_format="array_record", version=VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        contents = self._contents
        features = {"image": tfds.features.Image(shape=contents.shape), "file": tfds.features.Text()}
        features |= {field: tfds.features.ClassLabel(names=names) for field, names in contents.class_names.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            homepage=self._homepage,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._contents.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        kept = itertools.count()
        columns = self.labels[split] = {field: [] for field in self._contents.class_names}
        content = self.contents[split] = hashes.Content()
        for example, found, usable in _looked_at(self._contents.splits[split](), self._contents.shape[2]):
            for field, label in example.labels.items():
                classes = len(self._contents.class_names[field])
                if not 0 <= label < classes:
                    raise ValueError(f"{example.file}: {field} must lie in 0..{classes - 1}, got {label}.")
            if found and self._policy == "raise":
                raise ValueError(f"{example.file}: {found}. `--bad-images convert` mends it, `skip` leaves it out.")
            keep = not found or (usable and self._policy == "convert")
            if found:
                self.bad.append(Bad(split, example.file, found, keep))
            if keep:
                for field, values in columns.items():
                    values.append(example.labels[field])
                content.add(example.image, {field: example.labels[field] for field in columns})
                yield next(kept), {"image": example.image, "file": example.file, **example.labels}
        if not next(kept):
            raise ValueError(f"{self.name}: there is no image for the split {split}.")


def prepare(name: str, source: Path | None, directory: Path, policy: Policy = "convert") -> Path:
    """The folder of the data set `name`, prepared under `directory` from what is in `source`.

    A name that is not known takes class folders or an `.npz` file from `source`. Every image is decoded once; the
    folder's `bad_images.json` names those that are not plain.

    Raises:
      ValueError, FileNotFoundError: for a source that lacks something, saying what and where its owner gives it out.
    """
    if name in VIEWS:
        name = VIEWS[name].of
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"The name of a data set is of small letters, digits and _, got {name!r}.")
    folder = directory / name / VERSION
    if folder.exists():
        raise ValueError(f"{folder} is there already. Delete it to prepare {name} anew.")
    return write(name, *_read(name, source), directory, policy)


def write(name: str, contents: Contents, homepage: str, directory: Path, policy: Policy) -> Path:
    """The folder to which `contents` have been written as the data set `name`.

    Raises:
      OSError: naming the folder, of which nothing is left.
    """
    folder = directory / name / VERSION
    builder = _Builder(name, contents, homepage, policy, directory)
    tfds.enable_progress_bar() if sys.stderr.isatty() else tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):  # it announces downloads of unknown size
            builder.download_and_prepare()
        whole_files.write(folder / BAD_IMAGES, json.dumps([bad._asdict() for bad in builder.bad], indent=1))
        for split, of_field in builder.labels.items():
            labels.save(folder, split, {field: np.array(values, np.int32) for field, values in of_field.items()})
        hashes.write(folder, {split: str(content) for split, content in builder.contents.items()})
    except (OSError, RuntimeError) as error:  # the latter from array_record
        full = re.search("No space left on device|Disk quota exceeded|File too large", str(error))
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RuntimeError) and not full:
            raise
        raise OSError(f"{folder} cannot be written: {full[0] if full else error}. Nothing of it is left.") from error
    return folder


def prepared(name: str, directory: str) -> Any:
    """A TFDS builder of the data set `name`, or `name/config:version`, that lies under `directory`.

    Digits, which need no files, are prepared on first use.

    Raises:
      ValueError: where it is not there or not as `array_record`, saying how to prepare it.
    """
    root = Path(directory).expanduser()
    bare, _, version = name.partition(":")
    found = [path.parent for path in sorted((root / bare).glob("**/dataset_info.json"))]
    found = [path for path in found if version in ("", path.name) and "incomplete" not in str(path)]
    if not found and name == "digits":
        found = [prepare(name, None, root)]
    if not found:
        known = ", ".join([*KNOWN, *VIEWS, "synthetic"])
        raise ValueError(
            f"Data set {name!r} is not prepared under {directory}: python -m train prepare {bare} --from PATH. "
            f"Known: {known}; or any folder or .npz file."
        )
    if len({path.parent for path in found}) > 1:
        raise ValueError(f"{name!r} has several configurations: {', '.join(str(p.relative_to(root)) for p in found)}.")
    builder = _opened(max(found, key=lambda path: tfds.core.Version(path.name)))
    if (form := str(builder.info.as_proto.file_format)) != "array_record":
        raise ValueError(
            f"{builder.data_path} is prepared as {form}, which needs TensorFlow to be read. "
            "TFDS's convert_format script makes it array_record."
        )
    if not (Path(builder.data_path) / hashes.FILE).exists():
        _take_over(builder)
    return builder


def _opened(folder: Path) -> Any:
    """TFDS's builder, once the files are those that were written and name no code.

    Raises:
      ValueError: for others.
    """
    if (folder / hashes.FILE).exists():
        hashes.check(folder)
    try:
        _check_features(json.loads((folder / "features.json").read_text()), folder)
        return tfds.builder_from_directory(folder)
    except Exception as error:  # by what is damaged: ParseError, KeyError, UnicodeDecodeError, ...
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder} cannot be read: {text}. Prepare it again, or ask who prepared it.") from error


def _check_features(value: Any, folder: Path) -> None:
    """Raises a ValueError for a class that is none of TFDS's own, wherever the description has it."""
    known = {f"{kind.__module__}.{kind.__name__}" for kind in (getattr(tfds.features, name) for name in _FEATURES)}
    if isinstance(value, list):
        for item in value:
            _check_features(item, folder)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in ("pythonClassName", "python_class_name", "type") and item not in known:
            raise ValueError(f"features.json names {item!r}, which is none of TFDS's {', '.join(_FEATURES)}: refused")
        _check_features(item, folder)


def _take_over(builder: Any) -> None:
    """Reads a data set without hashes through, once: from then on its files are checked.

    Raises:
      ValueError: for records that cannot be read.
    """
    folder, fields, contents = Path(builder.data_path), labels.fields(builder.info.features), {}
    print(
        f"note: {folder} has no {hashes.FILE}: its files are taken as they are, and checked from now on.",
        file=sys.stderr,
    )
    kept = {}
    for split in builder.info.splits:
        content, columns = hashes.Content(), {field: [] for field in fields}
        for record in labels.records(builder, split):
            content.add(record["image"], {field: int(record[field]) for field in fields})
            for field, values in columns.items():
                values.append(record[field])
        contents[split], kept[split] = str(content), columns
    try:
        for split, columns in kept.items():
            labels.save(folder, split, {field: np.array(values, np.int32) for field, values in columns.items()})
        hashes.write(folder, contents)
    except OSError as error:
        raise ValueError(f"{folder} needs a {hashes.FILE}, which cannot be written there ({error}).") from error


def bad_images_text(folder: Path) -> str:
    """What `prepare` found wrong, counted by kind, with every file's name."""
    bad = [Bad(**entry) for entry in json.loads((folder / BAD_IMAGES).read_text())]
    counts = Counter((entry.flaw.split(":")[0], entry.kept) for entry in bad)
    if not bad:
        return "every image is plain"
    lines = [f"{n:>9,} {_OUTCOME[kept]}: {kind}" for (kind, kept), n in counts.items()]
    lines += [f"{_OUTCOME[entry.kept]}: {entry.file} ({entry.flaw})" for entry in bad[:20]]
    return "\n".join([*lines, f"all {len(bad):,} are named in {folder / BAD_IMAGES}"])


def _read(name: str, source: Path | None) -> tuple[Contents, str]:
    known = KNOWN.get(name)
    source = source or (known.usual_place if known else None)
    if known and not known.files:
        return known.read(Files(Path())), known.homepage
    if source is None or not source.exists():
        asked = f"{source} does not exist." if source else "Say where its files are: --from PATH."
        raise FileNotFoundError(f"{asked} {_wanted(name, known)}")
    if found := _npz(source, name if known else None):
        return packed.read(found), ""
    if known is None:
        return class_folders(Files(source)), ""
    for file in known.files:
        if file.size and (path := source / file.name).is_file() and path.stat().st_size != file.size:
            print(f"note: {path} has {path.stat().st_size:,} bytes, its owner's {file.size:,}", file=sys.stderr)
    try:
        return known.read(Files(source)), known.homepage
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}. {_wanted(name, known)}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:  # lists without what their owner's have: KeyError, IndexError, ...
        raise ValueError(f"{name}: its lists are damaged ({error!r}). {_wanted(name, known)}") from error


def _wanted(name: str, known: DataSet | None) -> str:
    if known is None:
        return f"{name!r} takes folders train/<class>/*.jpg or an .npz file. Known by name: {', '.join(KNOWN)}."
    files = "; ".join(map(str, known.files))
    given_out = f"Its owner gives them out at {known.homepage}"
    return f"{name} needs, packed or unpacked: {files}. {given_out} {known.note}".strip()


def _npz(source: Path, prefix: str | None) -> dict[str, Path]:
    """The file itself, or a folder's `<name>_train.npz` and `<name>_test.npz`."""
    if source.suffix == ".npz":
        return {"": source}
    if prefix is None:
        return {}
    named = {"train": "train", "validation": "val", "test": "test"}
    paths = {split: source / f"{prefix}_{word}.npz" for split, word in named.items()}
    return {split: path for split, path in paths.items() if path.is_file()}


def _looked_at(examples: Iterable[Example], channels: int) -> Iterator[tuple[Example, str, bool]]:
    """Each example with its image's flaw and whether it can be used all the same; threads decode ahead."""
    waiting: deque[tuple[Example, Future[tuple[str, bool]]]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for example in examples:
            waiting.append((example, threads.submit(flaw, example.image, channels)))
            if len(waiting) > _AHEAD:
                first, looked_at = waiting.popleft()
                yield first, *looked_at.result()
        for first, looked_at in waiting:
            yield first, *looked_at.result()


def flaw(encoded: bytes, channels: int) -> tuple[str, bool]:
    """What is not plain about an image, and whether it can be used all the same."""
    try:
        images.read(encoded, channels, "raise")
    except BadImageError as error:
        with contextlib.suppress(BadImageError):
            images.read(encoded, channels, "convert")
            return str(error), True
        return str(error), False
    return "", True
