"""Preparing data sets as TFDS `array_record`, without TensorFlow, and finding those that are prepared."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from train.config import DataConfig
from train.data import csv_list, hashes, labels, npz_file
from train.data.archives import Files
from train.data.catalog import KNOWN, DataSet
from train.data.division import Division
from train.data.images import Policy
from train.data.sources import Contents, class_folders
from train.data.views import VIEWS, View
from train.data.writing import BAD_IMAGES, VERSION, Bad, write

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


def prepare(
    name: str,
    source: Path | None,
    directory: Path,
    policy: Policy = "convert",
    division: Division = Division(),  # noqa: B008 - frozen
) -> Path:
    """The folder of the data set `name`, prepared under `directory` from what is in `source`.

    A name that is not known takes class folders, an `.npz` file or a CSV list of files from `source`; its records are
    shuffled, once, and `division` makes validation and test images of some. Every image is decoded once; the folder's
    `bad_images.json` names those that are not plain.

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
    contents, homepage = _read(name, source, division)
    return write(name, contents, homepage, directory, policy)


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
            f"Known: {known}; or any folder, .npz or CSV file."
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


def check_prepared(configs: Iterable[DataConfig]) -> None:
    """Raises a ValueError that names all data sets which are not prepared, each with its files and who has them."""
    missing = {}
    for config in configs:
        bare = VIEWS.get(config.name, View(config.name)).of.partition(":")[0]
        root = Path(config.directory).expanduser()
        if bare not in ("synthetic", "digits") and not any((root / bare).glob("**/dataset_info.json")):
            missing[bare] = root
    if not missing:
        return
    one = f"Data set {next(iter(missing))!r} is" if len(missing) == 1 else f"{len(missing)} data sets are"
    lines = [
        f"{name}: python -m train prepare {name} --from PATH. {_wanted(name, KNOWN.get(name))}" for name in missing
    ]
    raise ValueError(
        "\n  ".join([f"{one} not prepared under {', '.join(sorted(set(map(str, missing.values()))))}:", *lines])
    )


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


def _read(name: str, source: Path | None, division: Division) -> tuple[Contents, str]:
    known = KNOWN.get(name)
    if known and division != Division():
        raise ValueError(f"{name} has its owner's splits. Its config takes parts of them, such as train[:90%].")
    source = source or (known.usual_place if known else None)
    if known and not known.files:
        return known.read(Files(Path())), known.homepage
    if source is None or not source.exists():
        asked = f"{source} does not exist." if source else "Say where its files are: --from PATH."
        raise FileNotFoundError(f"{asked} {_wanted(name, known)}")
    if known is None:
        return _read_ones_own(source, division), ""
    if found := _npz(source, name):
        return npz_file.read(found), ""
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


def _read_ones_own(source: Path, division: Division) -> Contents:
    if source.suffix == ".npz":
        return npz_file.read({"": source}, division)
    if listed := csv_list.find(source):
        return csv_list.read(listed, division)
    return class_folders(Files(source), division)


def _wanted(name: str, known: DataSet | None) -> str:
    if known is None:
        forms = "folders <class>/*.jpg or train/<class>/*.jpg, an .npz file, or a CSV file with columns file and label"
        return f"{name!r} takes {forms}. Known by name: {', '.join(KNOWN)}."
    files = "; ".join(map(str, known.files))
    given_out = f"Its owner gives them out at {known.homepage}"
    return f"{name} needs, packed or unpacked: {files}. {given_out} {known.note}".strip()


def _npz(source: Path, prefix: str) -> dict[str, Path]:
    """The file itself, or a folder's `<name>_train.npz` and `<name>_test.npz`."""
    if source.suffix == ".npz":
        return {"": source}
    named = {"train": "train", "validation": "val", "test": "test"}
    paths = {split: source / f"{prefix}_{word}.npz" for split, word in named.items()}
    return {split: path for split, path in paths.items() if path.is_file()}
