"""A grid of settings as a table: what the search found at every point, and the paper's test accuracies beside ours.

<runs>/<name>/grid.json                   how the run was made; missing while it goes on
<runs>/<name>/search/program<i>/result.json, <runs>/<name>/final/program<i>/result.json
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from train import page
from train.grid import Grid
from train.grid_search import ARMS, BASELINE, VCREG, Result, arm_of, by_point
from train.run_folder import write_json
from train.tables import NOT_RUN, Cell, gain


@dataclass(frozen=True)
class GridTable:
    """What there is of one config; accuracies are fractions."""

    config: Grid
    search: Sequence[Result]  # on validation images
    final: Sequence[Result]  # on test images
    made: Mapping[str, Any]  # command, hardware, commit, seconds; empty while a run is unfinished


def gather(config: Grid) -> GridTable:
    """The results that lie in the run folder of `config`; a folder that is not there has none."""
    folder = Path(config.runs_directory) / config.name
    search, final = ([own for path in _in_order(folder / part) for own in _read(path)] for part in ("search", "final"))
    made = json.loads(path.read_text()) if (path := folder / "grid.json").exists() else {}
    return GridTable(config, search, final, made)


def _in_order(folder: Path) -> list[Path]:
    return sorted(folder.glob("program*/result.json"), key=lambda path: int(path.parent.name.removeprefix("program")))


def _read(path: Path) -> list[Result]:
    try:
        return [own | {"accuracy": float(own["accuracy"])} for own in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a grid ({error}). Delete it and run the config again.") from None


def _cell(results: Sequence[Result]) -> Cell:
    return Cell({own["seed"]: 100 * own["accuracy"] for own in results})


def final_rows(table: GridTable) -> list[list[str]]:
    """The header; the paper's accuracies and ours with the point that was chosen; ours less the baseline."""
    lines = [["", "learning rate, alpha, beta", "paper", "ours", "n"]]
    cells = {arm: _cell([own for own in table.final if arm_of(own) == arm]) for arm in ARMS}
    for arm, cell in cells.items():
        points = by_point([own for own in table.final if arm_of(own) == arm])
        paper = table.config.paper.get(arm)
        point = "; ".join(", ".join(f"{value:g}" for value in point) for point in points)
        lines.append([arm, point, "" if paper is None else f"{paper:.1f}", str(cell), str(cell.n)])
    paper = table.config.paper
    difference = f"{paper[VCREG] - paper[BASELINE]:+.1f}" if paper.keys() >= set(ARMS) else ""
    lines.append([f"{VCREG} less {BASELINE}", "", difference, gain(cells[VCREG], cells[BASELINE]), ""])
    return lines


def search_rows(table: GridTable) -> list[list[str]]:
    """The header; a line for every learning rate and alpha, with a column for every beta; alpha = beta = 0 first."""
    cells = {point: _cell(found) for point, found in by_point(table.search).items()}
    lines = [["learning rate", "alpha", *(f"beta {beta:g}" for beta in table.config.betas)]]
    for rate in table.config.learning_rates:
        none = str(cells.get((rate, 0.0, 0.0), NOT_RUN))
        lines.append([f"{rate:g}", BASELINE, none, *[""] * (len(table.config.betas) - 1)])
        for alpha in table.config.alphas:
            own = [str(cells.get((rate, alpha, beta), NOT_RUN)) for beta in table.config.betas]
            lines.append([f"{rate:g}", f"{alpha:g}", *own])
    return lines


def notes(table: GridTable) -> list[str]:
    """How the numbers came about."""
    config, made = table.config, table.made
    if not table.search:
        return ["Not run."]
    where = config.search.data.validation_split, config.search.data.train_split
    said = [
        "Test accuracy in %: mean ± standard deviation over n seeds; the difference ± its standard error.",
        f"The search: accuracy on validation images ({where[0]}, training images of {where[1]}), seeds "
        f"{', '.join(map(str, config.search_seeds))}; the best mean of each arm was trained anew and tested.",
        f"{config.train.model.name}, batch {config.train.batch_size}, {config.train.steps} steps, "
        f"{config.search.steps} in the search.",
    ]
    if lost := [own for own in (*table.search, *table.final) if own["skipped"]]:
        said.append(f"Settings of which updates were skipped, their loss or gradient not being finite: {len(lost)}.")
    if made:
        seconds = f"{made['wall_seconds']:.0f} s"
        said.append(f"{made['hardware']}, commit {made['commit']}, {seconds} in the last call: {made['command']}")
    else:
        said.append("The run is not finished.")
    return said


def text(table: GridTable) -> str:
    """Both tables in Markdown, with how they were made."""
    parts = [table.config.title]
    if table.search:
        parts += ["\n".join(_markdown(rows)) for rows in (final_rows(table), search_rows(table))]
    return "\n\n".join([*parts, *notes(table)])


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, f"|{' --- |' * len(rows[0])}", *body]


def write(name: str, tables: Sequence[GridTable], folder: Path) -> Path:
    """The path of `<name>.html`, which needs no network; beside it lies `<name>.json` with every number."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {table.config.name: as_json(table) for table in tables})
    path = folder / f"{name}.html"
    path.write_text(page.page(name, "".join(map(_section, tables))), encoding="utf-8")
    return path


def as_json(table: GridTable) -> dict[str, Any]:
    """Every number, and how it was made, as what JSON can hold."""
    about = {"title": table.config.title, "paper": table.config.paper}
    return {**about, "search": list(table.search), "final": list(table.final), **table.made}


def _section(table: GridTable) -> str:
    shown = (final_rows(table), search_rows(table)) if table.search else ()
    return "".join(
        [
            f"<h2>{escape(table.config.title)}</h2>",
            *(page.table(rows[0], rows[1:]) for rows in shown),
            *(f'<p class="soft">{escape(note)}</p>' for note in notes(table)),
        ]
    )
