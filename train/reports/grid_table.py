"""A grid of settings as tables and a heat map: what the search found, and the paper's test accuracies beside ours.

<runs>/<name>/grid.json                   how the run was made; missing while it goes on
<runs>/<name>/search/program<i>/result.json, <runs>/<name>/final/program<i>/result.json
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.experiments.grid import BASELINE, Grid
from train.experiments.grid_search import FINAL, SEARCH, Result, by_point
from train.files import whole_files
from train.reports import figures, page
from train.reports.axis_labels import ink_on
from train.reports.summary import NOT_RUN, Sample, difference, markdown
from train.run.folder import write_json


@dataclass(frozen=True)
class GridTable:
    """What there is of one config; accuracies are fractions."""

    config: Grid
    search: Sequence[Result]  # on validation images
    final: Sequence[Result]  # on test images
    made: Mapping[str, Any]  # command, hardware, commit, seconds; empty while a run is unfinished
    command: str  # that runs it, or goes on with it


def gather(config: Grid, command: str) -> GridTable:
    """The results that lie in the run folder of `config`, which `command` runs; a folder that is not there has none."""
    folder = Path(config.runs_directory) / config.name
    search, final = ([own for path in _in_order(folder / part) for own in _read(path)] for part in (SEARCH, FINAL))
    made = json.loads(path.read_text()) if (path := folder / "grid.json").exists() else {}
    return GridTable(config, search, final, made, command)


def _in_order(folder: Path) -> list[Path]:
    return sorted(folder.glob("program*/result.json"), key=lambda path: int(path.parent.name.removeprefix("program")))


def _read(path: Path) -> list[Result]:
    try:
        numbers = ("accuracy", "score")
        return [own | {name: float(own[name]) for name in numbers} for own in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a grid ({error}). Delete it and run the config again.") from None


def _cell(results: Sequence[Result], column: str) -> Sample:
    """The score, the network's own accuracy, or a target's, of every seed in %."""
    read = {"score": lambda own: own["score"], "": lambda own: own["accuracy"]}
    of = read.get(column, lambda own: own["targets"][column]["accuracy"])
    return Sample({own["seed"]: 100 * of(own) for own in results})


def final_rows(table: GridTable) -> list[list[str]]:
    """The header; each arm with the point that was chosen, the paper's accuracy and ours; each less the baseline."""
    columns, paper, arms = ("", *table.config.targets), table.config.paper, (BASELINE, *table.config.arms)
    lines = [["", "learning rate, alpha, beta", "paper", "ours", *table.config.targets, "n"]]
    cells = {arm: [_cell([own for own in table.final if own["arm"] == arm], name) for name in columns] for arm in arms}
    for arm, own in cells.items():
        point = "; ".join(", ".join(f"{value:g}" for value in point) for point in by_point(table.final, arm))
        lines.append([arm, point, f"{paper[arm]:.1f}" if arm in paper else "", *map(str, own), str(own[0].n)])
    for arm in arms[1:]:
        of_paper = f"{paper[arm] - paper[BASELINE]:+.1f}" if paper.keys() >= {arm, BASELINE} else ""
        gains = [difference(own, against) for own, against in zip(cells[arm], cells[BASELINE], strict=True)]
        lines.append([f"{arm} less {BASELINE}", "", of_paper, *(str(one or "") for one in gains), ""])
    return lines


def search_rows(table: GridTable, arm: str) -> list[list[str]]:
    """The header; for every learning rate the baseline, then a line for every alpha with a column for every beta."""
    alphas, betas = table.config.arms[arm].alphas, table.config.arms[arm].betas
    cells = {point: _cell(at_point, "score") for point, at_point in by_point(table.search, arm).items()}
    baseline = {point[0]: _cell(at_point, "score") for point, at_point in by_point(table.search, BASELINE).items()}
    lines = [["learning rate", "alpha", *(f"beta {beta:g}" for beta in betas)]]
    for rate in table.config.learning_rates:
        lines.append([f"{rate:g}", BASELINE, str(baseline.get(rate, NOT_RUN)), *[""] * (len(betas) - 1)])
        for alpha in alphas:
            own = [str(cells.get((rate, alpha, beta), NOT_RUN)) for beta in betas]
            lines.append([f"{rate:g}", f"{alpha:g}", *own])
    return lines


@figures.styled
def heat_map(table: GridTable) -> Figure:
    """The search's gain over the best baseline at every alpha and beta, a panel for each arm; of rates the best."""
    arms = table.config.arms
    gains = {arm: _gains(table, arm) for arm in arms}
    most = max(1e-9, *(np.abs(own[np.isfinite(own)]).max(initial=0) for own in gains.values()))
    heights = [len(own.alphas) for own in arms.values()]
    width = max(len(own.betas) for own in arms.values())
    # One below the other, so that they can be read on a narrow page.
    figure = Figure(figsize=(max(4.6, 1.5 + 0.75 * width), 0.9 * len(arms) + 0.4 * sum(heights)))
    panels = figure.subplots(len(arms), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (arm, own) in zip(panels, arms.items(), strict=True):
        cells = axes.pcolormesh(
            np.arange(len(own.betas) + 1) - 0.5, np.arange(len(own.alphas) + 1) - 0.5, gains[arm],
            cmap="RdBu", vmin=-most, vmax=most, linewidth=0,
        )  # fmt: skip
        axes.invert_yaxis()
        axes.set_xticks(range(len(own.betas)), [f"{beta:g}" for beta in own.betas])
        axes.set_yticks(range(len(own.alphas)), [f"{alpha:g}" for alpha in own.alphas])
        axes.set(title=arm, xlabel="beta", ylabel="alpha")
        axes.grid(False)
        for (row, column), value in np.ndenumerate(gains[arm]):
            shown, ink = NOT_RUN, {}  # on no colour, in the text's own
            if np.isfinite(value):
                shown, ink = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}"), {"color": ink_on(cells.to_rgba(value))}
            axes.text(column, row, shown, ha="center", va="center", fontsize=8, **ink)
    figure.tight_layout()
    return figure


def _gains(table: GridTable, arm: str) -> np.ndarray:
    """Points of accuracy in % over the best baseline, (alphas, betas); NaN where nothing was run."""
    own, means = table.config.arms[arm], {}
    for (_, alpha, beta), at_point in by_point(table.search, arm).items():
        means[alpha, beta] = max(means.get((alpha, beta), -np.inf), _cell(at_point, "score").mean)
    none = max((_cell(found, "score").mean for found in by_point(table.search, BASELINE).values()), default=np.nan)
    return np.array([[means.get((alpha, beta), np.nan) - none for beta in own.betas] for alpha in own.alphas])


def notes(table: GridTable) -> list[str]:
    """How the numbers came about."""
    config, made = table.config, table.made
    if not table.search:
        return [page.not_run(table.command)]
    where = config.search.data.validation_split, config.search.data.train_split
    said = [
        "Test accuracy in %: mean ± standard deviation over n seeds; the difference ± its standard error.",
        f"The search: {'mean accuracy of the probes' if config.targets else 'accuracy'} on validation images "
        f"({where[0]}, training images of {where[1]}), seeds {', '.join(map(str, config.search_seeds))}; the best mean "
        "of each arm was trained anew and tested.",
        f"{config.train.model.name}, batch {config.train.batch_size}, {config.train.steps} steps, "
        f"{config.search.steps} in the search.",
    ]
    if lost := [own for own in (*table.search, *table.final) if own["skipped"]]:
        said.append(f"Settings of which updates were skipped, their loss or gradient not being finite: {len(lost)}.")
    return [*said, page.made_by(made, table.command)]


def text(table: GridTable) -> str:
    """Both tables in Markdown, with how they were made."""
    parts = [table.config.title]
    if table.search:
        parts += ["\n".join(markdown(rows, names=2)) for rows in _all_rows(table)]
    return "\n\n".join([*parts, *notes(table)])


def _all_rows(table: GridTable) -> list[list[list[str]]]:
    """The table of the final runs, then the search's for each arm, which names it in its corner."""
    searches = []
    for arm in table.config.arms:
        header, *body = search_rows(table, arm)
        searches.append([[f"{arm}: {header[0]}", *header[1:]], *body])
    return [final_rows(table), *searches]


def write(name: str, tables: Sequence[GridTable], folder: Path) -> Path:
    """The path of `<name>.html`, which needs no network; beside it lies `<name>.json` with every number."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {table.config.name: as_json(table) for table in tables})
    for table in tables:
        if table.search:
            path = folder / f"{table.config.name}.svg"
            with whole_files.replace(path) as partial:
                heat_map(table).savefig(partial, format="svg", facecolor="white", metadata={"Date": None})
    path = folder / f"{name}.html"
    body = "".join(_section(table, f"{name}{index}-") for index, table in enumerate(tables))
    whole_files.write(path, page.of_tables(name, body))
    return path


def as_json(table: GridTable) -> dict[str, Any]:
    """Every number, and how it was made, as what JSON can hold."""
    about = {"title": table.config.title, "paper": table.config.paper}
    return {**about, "search": list(table.search), "final": list(table.final), **table.made}


def _section(table: GridTable, prefix: str) -> str:
    shown, pictures = _all_rows(table) if table.search else [], ""
    if table.search:
        caption = (
            "The search's gain over the best baseline on validation images, in points, at every alpha and beta; of "
            "learning rates the best. Blue gains, red loses."
        )
        pictures = figures.picture(f"{prefix}map", [heat_map(table)], f"{table.config.title}: {caption}", caption)
    return "".join(
        [
            f"<section><h2>{escape(table.config.title)}</h2>",
            *(page.table(rows[0], rows[1:]) for rows in shown[:1]),
            pictures,
            *(page.table(rows[0], rows[1:]) for rows in shown[1:]),
            *(f'<p class="soft">{escape(note)}</p>' for note in notes(table)),
            "</section>",
        ]
    )
