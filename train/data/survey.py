"""What is in a prepared data set: counts, balance, a contact sheet, and whether every image decodes."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from train.augment import EvalTransformConfig
from train.config import DataConfig
from train.data import builders, labels, pipeline
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
    lines, bad = [f"{name}: {builder.data_path}"], []
    for split in builder.info.splits:
        splits = [pipeline.load(_config(name, fields[0], directory), split, field) for field in fields]
        lines.append(f"\n{split}: {len(splits[0]):,} images")
        lines += [f"  {field}: {_balance(data)}" for field, data in zip(fields, splits, strict=True)]
        found = _looked_at(splits[0])
        bad += found["undecodable"]
        lines += [f"  sizes: {found['sizes']}", f"  {len(found['undecodable']):,} images do not decode"]
        lines += [f"    {message}" for message in found["undecodable"][:_NAMED]]
        lines += [f"  {count:,} are converted when read: {flaw}" for flaw, count in found["flaws"].most_common()]
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
    with ThreadPoolExecutor(_THREADS) as threads:
        for message, flaw, size in threads.map(lambda position: _look(data, position), range(len(data))):
            if message:
                undecodable.append(message)
            else:
                sizes[size] += 1
                flaws.update([flaw] if flaw else [])
    widths, heights = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    many = f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}, {len(sizes):,} different"
    return {"undecodable": undecodable, "flaws": flaws, "sizes": many}


def _look(data: pipeline.Split, position: int) -> tuple[str, str, tuple[int, int]]:
    """What is wrong with an image that does not decode; otherwise its flaw and size."""
    index = int(data.selection.indices[position])
    record = data.selection.records[index]
    try:
        image = data.opened(index, record)
    except BadImageError as error:
        return str(error), "", (0, 0)
    assert isinstance(image, Image.Image)  # synthetic data are not prepared
    return "", builders.flaw(record["image"], data.image_shape[2])[0], image.size
