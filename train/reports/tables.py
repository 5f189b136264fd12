"""Experiments as the paper's tables: its numbers beside ours, with n, and what has not been run."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from train.config import Experiment
from train.files import whole_files
from train.reports import figures, page, results
from train.reports.results import Results
from train.reports.summary import difference, markdown
from train.run.folder import write_json
from vcreg_jax import Sites


@dataclass(frozen=True)
class Gathered:
    """What there is of one config."""

    config: Experiment
    results: Results
    command: str  # that runs it, or goes on with it

    @property
    def is_begun(self) -> bool:
        """Whether a seed of an arm has finished."""
        return any(sample.n for own in self.results.accuracy.values() for sample in own.values())


def gather(config: Experiment, command: str) -> Gathered:
    """The results that lie in the run folder of `config`, which `command` runs; a folder that is not there has none.

    Raises:
      ValueError: for a result that cannot be read or lacks a target, naming the file.
    """
    found = results.read(Path(config.runs_directory) / config.name, config.arms, config.targets)
    return Gathered(config, found, command)


def rows(gathered: Gathered) -> list[list[str]]:
    """The table as text, its header first: the paper's row where it has one, ours, and ours less the first arm's."""
    columns, accuracy = gathered.results.columns, gathered.results.accuracy
    first, *others = accuracy
    lines = [["", "", *columns]]
    for arm, samples in accuracy.items():
        if paper := gathered.config.paper.get(arm):
            lines.append([arm, "paper", *(f"{paper[c]:.1f}" if c in paper else "" for c in columns)])
        counts = sorted({sample.n for sample in samples.values() if sample.n})  # without targets not yet probed
        ours = f"ours, n = {counts[0]}" if counts else "ours"
        lines.append([arm, ours, *map(str, samples.values())])
    for arm in others:
        apart = [difference(accuracy[arm][column], accuracy[first][column]) for column in columns]
        if any(apart):
            lines.append([f"{arm} less {first}", "ours", *("" if one is None else str(one) for one in apart)])
    return lines


def text(gathered: Gathered) -> str:
    """The table in Markdown, with how it was made."""
    return "\n".join([gathered.config.title, "", *markdown(rows(gathered), names=2), "", *_notes(gathered)])


def _notes(gathered: Gathered) -> list[str]:
    if not gathered.is_begun:
        return [page.not_run(gathered.command)]
    config, found = gathered.config, gathered.results
    notes = ["Accuracy in %: mean ± standard deviation over n seeds; differences ± standard error."]
    tried = max(1 if isinstance(own, Sites) else len(own) for own in config.arms.values())
    if tried > 1:
        notes.append(
            f"Of each arm {tried} candidates were tried, with seed {config.tuning_seed}, on validation images."
        )
    notes.append(page.made_by(found.made, gathered.command))
    if found.unconverged:
        notes.append(f"The probe stopped before it converged: {'; '.join(found.unconverged)}.")
    return [*notes, *config.notes, *found.protocols]


def write(name: str, tables: Sequence[Gathered], folder: Path) -> Path:
    """The path of `<name>.html`, which needs no network; beside it lies `<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {table.config.name: as_json(table) for table in tables})
    path = folder / f"{name}.html"
    body = "".join(_section(table, f"{name}{index}-") for index, table in enumerate(tables))
    whole_files.write(path, page.of_tables(name, body))
    return path


def as_json(gathered: Gathered) -> dict[str, Any]:
    """Every number, and how it was made, as what JSON can hold."""
    found = gathered.results
    accuracy = {
        arm: {column: {str(seed): value for seed, value in sample.values.items()} for column, sample in own.items()}
        for arm, own in found.accuracy.items()
    }
    about = {"title": gathered.config.title, "paper": gathered.config.paper, "protocols": list(found.protocols)}
    return {**found.made, **about, "accuracy": accuracy, "unconverged": list(found.unconverged)}


def _section(gathered: Gathered, prefix: str) -> str:
    header, *body = rows(gathered)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in _notes(gathered))
    pictures = [_strip(gathered, column, f"{prefix}{i}") for i, column in enumerate(gathered.results.columns)]
    return (
        f"<section><h2>{escape(gathered.config.title)}</h2>{page.table(header, body)}"
        f'<div class="strips">{"".join(pictures)}</div>{notes}</section>'
    )


def _strip(gathered: Gathered, column: str, name: str) -> str:
    """Every seed of every arm that has run, as far as all of those have it."""
    run = {arm: own[column].values for arm, own in gathered.results.accuracy.items() if own[column].n}
    seeds = sorted(set.intersection(*(set(values) for values in run.values()))) if run else []
    if not seeds:
        return ""
    shares = {arm: [values[seed] / 100 for seed in seeds] for arm, values in run.items()}
    said = "; ".join(f"{arm} " + ", ".join(f"{share:.2%}" for share in own) for arm, own in shares.items())
    return figures.picture(
        name, [figures.strip(shares, "accuracy")], f"{column}: {said}", f"{column}: a dot for every seed."
    )
