"""Finished transfers as the paper's tables: its numbers beside ours, with n, and what has not been run.

<runs>/<name>/transfer.json             how the run was made; missing while it goes on
<runs>/<name>/<arm>/seed<k>/result.json the accuracies, fractions
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from train.config import Transfer
from train.reports import figures, page
from train.run.folder import write_json

NOT_RUN = "not run"
PRETRAINING = "pretraining"


@dataclass(frozen=True)
class Cell:
    """Accuracies (%) of an arm on a target, a value for each seed that has finished."""

    values: Mapping[int, float]  # by seed

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.mean(self.values.values())

    @property
    def std(self) -> float:
        """Their standard deviation (n - 1); NaN for one."""
        return statistics.stdev(self.values.values()) if self.n > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.2f}{_spread(self.std)}" if self.n else NOT_RUN


@dataclass(frozen=True)
class Gathered:
    """What there is of one config: `cells[arm][column]`, the columns being pretraining and the targets."""

    config: Transfer
    columns: Sequence[str]
    cells: Mapping[str, Mapping[str, Cell]]
    made: Mapping[str, Any]  # command, hardware, commit, seconds; empty while a run is unfinished
    protocols: Sequence[str]
    unconverged: Sequence[str]  # probes that stopped early


def gather(config: Transfer) -> Gathered:
    """The results that lie in the run folder of `config`; a folder that is not there has none.

    Raises:
      ValueError: for a result that cannot be read or lacks a target, naming the file.
    """
    folder = Path(config.runs_directory) / config.name
    columns, protocols, unconverged = [PRETRAINING, *config.targets], dict[str, None](), list[str]()
    values: dict[str, dict[str, dict[int, float]]] = {arm: {column: {} for column in columns} for arm in config.arms}
    for arm in config.arms:
        for path in sorted((folder / arm).glob("seed*/result.json")):
            seed, found = int(path.parent.name.removeprefix("seed")), _read(path, config)
            values[arm][PRETRAINING][seed] = 100 * found["pretraining_accuracy"]
            for name in config.targets:
                values[arm][name][seed] = 100 * found["targets"][name]["accuracy"]
                protocols[f"{name}: {found['targets'][name]['protocol']}"] = None
                if not found["targets"][name]["converged"]:
                    unconverged.append(f"{arm}, seed {seed}, {name}")
    cells = {arm: {column: Cell(own) for column, own in by_column.items()} for arm, by_column in values.items()}
    made = json.loads(path.read_text()) if (path := folder / "transfer.json").exists() else {}
    return Gathered(config, columns, cells, made, list(protocols), unconverged)


def _read(path: Path, config: Transfer) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if missing := config.targets.keys() - found["targets"].keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no result of this config ({error}). Delete it and run the config again.") from None
    return found


def rows(gathered: Gathered) -> list[list[str]]:
    """The table as text, its header first: the paper's row where it has one, ours, and ours less the first arm's."""
    first, *_ = gathered.cells
    lines = [["", "", *gathered.columns]]
    for arm, cells in gathered.cells.items():
        if paper := gathered.config.paper.get(arm):
            lines.append([arm, "paper", *(f"{paper[c]:.1f}" if c in paper else "" for c in gathered.columns)])
        counts = sorted({cell.n for cell in cells.values()})
        ours = f"ours, n = {counts[0]}" if counts != [0] else "ours"
        lines.append([arm, ours, *map(str, cells.values())])
    for arm, cells in list(gathered.cells.items())[1:]:
        against = gathered.cells[first]
        gains = [gain(cells[column], against[column]) for column in gathered.columns]
        if any(gains):
            lines.append([f"{arm} less {first}", "ours", *gains])
    return lines


def gain(cell: Cell, other: Cell) -> str:
    """The difference of means with the standard error of independent samples, sqrt(s1^2/n1 + s2^2/n2)."""
    if not cell.n or not other.n:
        return ""
    error = math.sqrt(cell.std**2 / cell.n + other.std**2 / other.n)
    return f"{cell.mean - other.mean:+.2f}{_spread(error)}".replace("-", "\N{MINUS SIGN}")


def _spread(value: float) -> str:
    return "" if math.isnan(value) else f" ± {value:.2f}"


def text(gathered: Gathered) -> str:
    """The table in Markdown, with how it was made."""
    lines = rows(gathered)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * width for width in widths[:2]] + ["-" * (width - 1) + ":" for width in widths[2:]]
    padded = [
        [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(
        [gathered.config.title, "", *(f"| {' | '.join(line)} |" for line in padded), "", *_notes(gathered)]
    )


def _notes(gathered: Gathered) -> list[str]:
    made, config = gathered.made, gathered.config
    tried = {len(candidates) for candidates in config.arms.values()}
    notes = ["Accuracy in %: mean ± standard deviation over n seeds; differences ± standard error."]
    if max(tried) > 1:
        notes.append(
            f"Of each arm {max(tried)} candidates were tried, with seed {config.tuning_seed}, on validation images."
        )
    if not any(cell.n for cells in gathered.cells.values() for cell in cells.values()):
        return ["Not run."]
    if made:
        seconds = f"{made['wall_seconds']:.0f} s"
        notes.append(f"{made['hardware']}, commit {made['commit']}, {seconds} in the last call: {made['command']}")
    else:
        notes.append("The run is not finished.")
    if gathered.unconverged:
        notes.append(f"The probe stopped before it converged: {'; '.join(gathered.unconverged)}.")
    return [*notes, *gathered.protocols]


def write(name: str, tables: Sequence[Gathered], folder: Path) -> Path:
    """The path of `<name>.html`, which needs no network; beside it lies `<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {table.config.name: as_json(table) for table in tables})
    path = folder / f"{name}.html"
    body = "".join(_section(table, f"{name}{index}-") for index, table in enumerate(tables))
    path.write_text(page.of_tables(name, body), encoding="utf-8")
    return path


def as_json(gathered: Gathered) -> dict[str, Any]:
    """Every number, and how it was made, as what JSON can hold."""
    accuracy = {
        arm: {column: {str(seed): value for seed, value in cell.values.items()} for column, cell in cells.items()}
        for arm, cells in gathered.cells.items()
    }
    about = {"title": gathered.config.title, "paper": gathered.config.paper, "protocols": list(gathered.protocols)}
    return {**about, "accuracy": accuracy, "unconverged": list(gathered.unconverged), **gathered.made}


def _section(gathered: Gathered, prefix: str) -> str:
    header, *body = rows(gathered)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in _notes(gathered))
    pictures = [_strip(gathered, column, f"{prefix}{index}") for index, column in enumerate(gathered.columns)]
    return (
        f"<section><h2>{escape(gathered.config.title)}</h2>{page.table(header, body)}"
        f'<div class="strips">{"".join(pictures)}</div>{notes}</section>'
    )


def _strip(gathered: Gathered, column: str, name: str) -> str:
    """Every seed of every arm that has run, as far as all of those have it."""
    run = {arm: cells[column].values for arm, cells in gathered.cells.items() if cells[column].n}
    seeds = sorted(set.intersection(*(set(values) for values in run.values()))) if run else []
    if not seeds:
        return ""
    shares = {arm: [values[seed] / 100 for seed in seeds] for arm, values in run.items()}
    said = "; ".join(f"{arm} " + ", ".join(f"{share:.2%}" for share in own) for arm, own in shares.items())
    return figures.picture(
        name, [figures.strip(shares, "accuracy")], f"{column}: {said}", f"{column}: a dot for every seed."
    )
