"""What is in a prepared data set: counts, balance, a contact sheet, and whether every image decodes."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from train.augment import EvalTransformConfig
from train.config import DataConfig
from train.data import builders, labels, measures, pipeline, writing
from train.data.images import BadImageError
from train.data.views import VIEWS, View

TILE, COLUMNS, ROWS = 96, 10, 6  # of the contact sheet: pixels, images
_THREADS, _NAMED = 8, 20


def survey(name: str, directory: Path) -> tuple[str, bool]:
    """The text that `python -m train data NAME` prints, and whether every image decodes. Writes `<name>.png` there.

    Raises:
      ValueError: for a data set that is not prepared, or whose labels are out of range.
    """
    view = VIEWS.get(name, View(name))
    builder = builders.prepared(view.of, str(directory))
    fields = ["superclass", "subclass"] if view.superclasses else labels.fields(builder.info.features)
    if not fields:
        raise ValueError(f"{name} has no class labels.")
    lines, bad, shorter = [f"{name}: {builder.data_path}"], [], list[int]()
    digests, files = dict[str, list[bytes]](), dict[str, list[str]]()
    for split in builder.info.splits:
        splits = [pipeline.load(_config(name, fields[0], directory), split, field) for field in fields]
        lines.append(f"\n{split}: {len(splits[0]):,} images")
        lines += [f"  {field}: {_balance(data)}" for field, data in zip(fields, splits, strict=True)]
        found = _looked_at(splits[0])
        digests[split], files[split], shorter = found["digests"], found["files"], [*shorter, *found["shorter"]]
        bad += found["undecodable"]
        lines += [f"  sizes: {found['sizes']}", f"  {len(found['undecodable']):,} images do not decode"]
        lines += [f"    {message}" for message in found["undecodable"][:_NAMED]]
        lines += [f"  {count:,} are converted when read: {flaw}" for flaw, count in found["flaws"].most_common()]
    lines += ["", *measures.describe_copies(digests, files)] if shorter else []
    lines += _suggestions(name, fields[0], directory, shorter) if shorter and "train" in builder.info.splits else []
    sheet = directory / f"{name.replace('/', '_').replace(':', '_')}.png"
    contact_sheet(pipeline.load(_config(name, fields[0], directory), next(iter(builder.info.splits)))).save(sheet)
    return "\n".join([*lines, f"\nContact sheet: {sheet}"]), not bad


def contact_sheet(data: pipeline.Split) -> Image.Image:
    """Images of the split at equal steps through its classes, each with its class's name."""
    by_class = np.argsort(data.labels(), kind="stable")
    chosen = by_class[np.linspace(0, len(by_class) - 1, min(COLUMNS * ROWS, len(by_class))).astype(int)]
    sheet = Image.new("RGB", (COLUMNS * TILE, ROWS * (TILE + 12)), "white")
    write = ImageDraw.Draw(sheet)
    for place, position in enumerate(chosen.tolist()):
        left, top = place % COLUMNS * TILE, place // COLUMNS * (TILE + 12)
        name = data.class_names[data.labels()[position]]
        write.text((left + 1, top + TILE), name.encode("latin-1", "replace").decode("latin-1")[:15], fill="black")
        try:
            image = data.image(position)
        except BadImageError:
            continue
        assert isinstance(image, Image.Image)  # synthetic data are not prepared
        sheet.paste(image.convert("RGB").resize((TILE - 2, TILE - 2)), (left, top))
    return sheet


def _config(name: str, field: str, directory: Path) -> DataConfig:
    square = EvalTransformConfig(64, 64)  # of no consequence: images are looked at as they are stored
    return DataConfig(name, field, (0.0,), (1.0,), evaluation=square, directory=str(directory))


def _balance(data: pipeline.Split) -> str:
    counts = np.bincount(data.labels(), minlength=data.num_classes)
    least, most = int(counts.argmin()), int(counts.argmax())
    text = f"{data.num_classes:,} classes, {counts.min():,} ({data.class_names[least]}) to {counts.max():,} "
    text += f"({data.class_names[most]}) images, median {int(np.median(counts)):,}"
    empty = [data.class_names[label] for label in np.flatnonzero(counts == 0)]
    return text + (f"; without any: {', '.join(empty[:10])}" if empty else "")


def _looked_at(data: pipeline.Split) -> dict:
    undecodable, flaws, sizes = [], Counter(), Counter()
    digests, files, shorter = [], [], []
    with ThreadPoolExecutor(_THREADS) as threads:
        for look in threads.map(lambda position: _look(data, position), range(len(data))):
            digests.append(look.digest)
            files.append(look.file)
            if look.message:
                undecodable.append(look.message)
            else:
                sizes[look.size] += 1
                shorter.append(min(look.size))
                flaws.update([look.flaw] if look.flaw else [])
    text = measures.describe_sizes(sizes) if sizes else "none"
    found = {"undecodable": undecodable, "flaws": flaws, "sizes": text}
    return found | {"digests": digests, "files": files, "shorter": shorter}


class _Look(NamedTuple):
    """What there is to say of one image."""

    file: str
    message: str = ""  # why it does not decode
    flaw: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""  # of its pixels


def _suggestions(name: str, field: str, directory: Path, shorter: list[int]) -> list[str]:
    """Mean and deviation for a config, and networks for images of this size."""
    side = int(np.median(shorter))
    data = pipeline.load(_config(name, field, directory), "train")
    mean, std = measures.measure_pixels(data)
    networks = {platform: measures.choose_network(side, platform) for platform in ("cpu", "gpu")}
    return [
        f"mean={mean}, std={std} of training images, as the centre square at 64 pixels",
        f"shorter side {side} pixels (median): {networks['cpu']} on a CPU, {networks['gpu']} on a GPU or TPU",
    ]


def _look(data: pipeline.Split, position: int) -> _Look:
    """What is wrong with an image that does not decode; otherwise its flaw and size."""
    index = int(data.selection.indices[position])
    record = data.selection.records[index]
    file = record.get("file", b"").decode()
    try:
        image = data.opened(index, record)
    except BadImageError as error:
        return _Look(file, str(error))
    assert isinstance(image, Image.Image)  # synthetic data are not prepared
    digest = hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).digest()
    flaw = writing.flaw(record["image"], data.image_shape[2])[0]
    return _Look(file, flaw=flaw, size=image.size, digest=digest)
