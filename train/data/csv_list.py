"""Images listed in a CSV file: a column of files, one of labels and perhaps one of splits."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.data.division import Division, divide
from train.data.sources import IMAGE_SUFFIXES, SPLIT_OF_FOLDER, Contents, Example, check_class_names, check_once

SUFFIXES = (".csv", ".tsv")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed", "y")
SPLITS = ("split", "set", "subset", "partition", "fold")
_LOOKED_AT = 50  # rows by which the column of files is found


def find(source: Path) -> Path | None:
    """The list itself, or the only one in a folder whose images do not lie in folders of classes."""
    if source.suffix.lower() in SUFFIXES:
        return source
    if not source.is_dir():
        return None
    there = [path for path in source.iterdir() if not path.name.startswith(".")]
    lists = [path for path in there if path.suffix.lower() in SUFFIXES]
    return lists[0] if len(lists) == 1 and sum(path.is_dir() for path in there) < 2 else None


def read(path: Path, division: Division = Division()) -> Contents:  # noqa: B008 - frozen
    """The images that `path` lists, beside it or in a folder beside it; a header is optional.

    The column of files is the one whose entries are files. Labels are under `label`, `class` or the like, or in the
    only column left; splits under `split` or the like. Classes are the labels in alphabetical order.

    Raises:
      ValueError: for a file that is no such list, an image that is not there or twice there, an empty label, and a
        split that cannot be made.
    """
    header, rows = _table(path)
    files, labels, splits = _columns(path, header, rows)
    found: dict[str, Path] = {}
    missing, seen = [], set[str]()
    folders = _folders(path)
    for row in rows:
        name = row[files].strip()
        check_once(name, seen)
        if (there := _located(name, folders)) is None:
            missing.append(name)
        else:
            found[name] = there
    if missing:
        some = ", ".join(missing[:3])
        raise ValueError(f"{path} lists {len(missing):,} of {len(rows):,} files that are not there: {some}.")
    of_class = [row[labels].strip() for row in rows]
    if "" in of_class:
        raise ValueError(f"{path} has no label for {rows[of_class.index('')][files]}.")
    check_class_names(of_class, path)
    of_split = ["train"] * len(rows) if splits is None else [_split(path, row[splits]) for row in rows]
    of_split = divide(of_split, of_class, division)
    classes = sorted({name for name, where in zip(of_class, of_split, strict=True) if where == "train"})
    if unknown := sorted(set(of_class) - set(classes)):
        raise ValueError(f"{path} has classes without training images: {', '.join(unknown[:5])}.")
    index = {name: label for label, name in enumerate(classes)}

    def split(wanted: str) -> Iterator[Example]:
        for (name, place), label, where in zip(found.items(), of_class, of_split, strict=True):
            if where == wanted:
                yield Example(name, place.read_bytes(), {"label": index[label]})

    named = {wanted: lambda wanted=wanted: split(wanted) for wanted in dict.fromkeys(of_split)}
    return Contents({"label": classes}, named, shuffled=True)


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header, empty where there is none, and the rows that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from error
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    if not rows or len(rows[0]) < 2:
        raise ValueError(f"{path} needs a column of files and one of labels, separated by commas.")
    if uneven := next((row for row in rows if len(row) != len(rows[0])), None):
        raise ValueError(f"{path} has {len(rows[0])} columns, but {len(uneven)} in the row {','.join(uneven)[:80]!r}.")
    folders = _folders(path)
    if any(_located(cell.strip(), folders) for cell in rows[0]):
        return [""] * len(rows[0]), rows
    return [cell.strip().lower() for cell in rows[0]], rows[1:]


def _columns(path: Path, header: list[str], rows: list[list[str]]) -> tuple[int, int, int | None]:
    """Which column has the files, which the labels, and which the splits."""
    folders, columns = _folders(path), range(len(header))
    hits = [sum(_located(row[column].strip(), folders) is not None for row in rows[:_LOOKED_AT]) for column in columns]
    if not max(hits, default=0):
        raise ValueError(f"{path} has no column whose entries are files in {path.parent} or in a folder there.")
    files = hits.index(max(hits))
    splits = next((column for column in columns if header[column] in SPLITS), None)
    others = [column for column in columns if column not in (files, splits)]
    named = [column for name in LABELS for column in others if header[column] == name]
    if not named and len(others) != 1:
        raise ValueError(f"{path} has columns {', '.join(header)}: call the one of labels `label`.")
    return files, (named or others)[0], splits


def _folders(path: Path) -> list[Path]:
    return [path.parent, *sorted(each for each in path.parent.iterdir() if each.is_dir())]


def _located(name: str, folders: Sequence[Path]) -> Path | None:
    """Where a file lies, whose suffix may have been left out."""
    if not name or "\0" in name:
        return None
    places = (folder / f"{name}{suffix}" for suffix in ("", *IMAGE_SUFFIXES) for folder in folders)
    return next((place for place in places if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES), None)


def _split(path: Path, name: str) -> str:
    if (found := SPLIT_OF_FOLDER.get(name.strip().lower())) is None:
        raise ValueError(f"{path}: a split is train, val or test, got {name!r}.")
    return found
