"""`python -m train runs`: what lies under runs/, how far it is, and how any two runs differ."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.files import json_files
from train.reports import results
from train.reports.results import PRETRAINING, Results
from train.reports.summary import Sample, difference, markdown
from train.run import folder as run_folder

_HEADER = ("run", "state", "networks", "step", "accuracy", "changed")
_WHOLE = {"Experiment": "experiment.json", "Grid": "grid.json", "TwoMoons": "figure1.json"}  # written at the end
_LONGEST = 60  # characters of a config's value that are shown


@dataclass(frozen=True)
class Run:
    """One run folder, as far as it is."""

    folder: Path
    config: Mapping[str, Any]  # as `config.json` has it
    state: str  # "running", "finished", or "stopped", which the same command goes on with
    finished: int  # networks that have a result
    networks: int  # of the config, each arm with each seed; 0 where it is no experiment
    step: int | None  # of the network that was trained last; None before its first line
    results: Results | None  # of an experiment
    changed: float  # when something was written last, seconds since 1970


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
      ValueError: for a folder that holds no run, or files of it that are not what was written.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no run: it has no config.json.")
    config = json_files.read(folder / "config.json")
    found, paths = None, []
    if config.get("class") == "Experiment":
        found = results.read(folder, config["arms"], config["targets"])
        paths = [folder / arm / f"seed{seed}" / "result.json" for arm in config["arms"] for seed in config["seeds"]]
    finished = sum(path.exists() for path in paths)
    whole = (folder / _WHOLE.get(config.get("class", ""), "experiment.json")).exists() and finished == len(paths)
    state = "running" if run_folder.is_in_use(folder) else "finished" if whole else "stopped"
    written = [path for path in folder.rglob("*.json*") if path.is_file()]
    changed = max(path.stat().st_mtime for path in written)
    return Run(folder, config, state, finished, len(paths), _last_step(folder), found, changed)


def list_runs(directory: Path) -> list[Run]:
    """The runs in a directory, the one that was written to last first; a folder that is none is passed over."""
    found = [read(path.parent) for path in sorted(directory.glob("*/config.json"))]
    return sorted(found, key=lambda run: -run.changed)


def format_list(runs: Sequence[Run]) -> str:
    """A table, a line each."""
    return "\n".join(markdown([_HEADER, *map(_row, runs)], names=len(_HEADER)))


def compare(one: Run, other: Run) -> str:
    """Where the configs differ, and the accuracies side by side, with the second's less the first's."""
    names = [run.folder.name for run in (one, other)]
    fields = run_folder.differences(one.config, other.config)
    changed = [[".".join(field), *(_shown(run.config, field) for run in (one, other))] for field in fields]
    lines = markdown([["config", *names], *changed], names=3) if changed else ["The configs are the same."]
    first, second = one.results, other.results
    if first is None or second is None:
        return "\n".join([*lines, "", "Results are compared of experiments alone."])
    table = [["arm", "accuracy (%)", *names, f"{names[1]} less {names[0]}"]]
    for arm in dict.fromkeys([*first.accuracy, *second.accuracy]):
        for column in dict.fromkeys([*first.columns, *second.columns]):
            samples = [own.accuracy.get(arm, {}).get(column, Sample()) for own in (first, second)]
            if not any(sample.n for sample in samples):
                continue
            apart = difference(samples[1], samples[0])
            table.append([arm, _label(column, one, other), *map(str, samples), "" if apart is None else str(apart)])
    n = "; ".join(f"{run.folder.name}: n = {len(run.config['seeds'])}, {run.state}" for run in (one, other))
    legend = f"Mean ± standard deviation; difference ± unpaired standard error. {n}."
    return "\n".join([*lines, "", *markdown(table, names=2), "", legend])


def _last_step(folder: Path) -> int | None:
    """Of the metrics that were written last; a line that is being written does not count."""
    paths = sorted(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not paths:
        return None
    whole = paths[-1].read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
    return max((line.get("step", 0) for line in json_files.read_lines(whole, paths[-1])), default=None)


def _row(run: Run) -> list[str]:
    steps = run.config.get("train", run.config).get("steps", "")
    when = datetime.datetime.fromtimestamp(run.changed).isoformat(" ", "minutes")
    networks = f"{run.finished} of {run.networks}" if run.networks else run.config.get("class", "")
    step = "" if run.step is None else f"{run.step} of {steps}"
    return [run.folder.name, run.state, networks, step, _accuracy(run), when]


def _accuracy(run: Run) -> str:
    """Of each arm: of the first target, or else of the trained label."""
    if run.results is None:
        return ""
    column = next(iter(run.config["targets"]), PRETRAINING)
    own = {arm: samples[column] for arm, samples in run.results.accuracy.items() if samples[column].n}
    said = ", ".join(f"{arm} {sample}" for arm, sample in own.items())
    return f"{said} ({_label(column, run)})" if said else ""


def _label(column: str, *runs: Run) -> str:
    """What a column's accuracy is of: the label that was trained, where all runs have the same."""
    labels = {run.config["train"]["data"]["label"] for run in runs}
    return f"{labels.pop() if len(labels) == 1 else 'trained label'}" if column == PRETRAINING else f"{column}, probe"


def _shown(config: Any, field: Sequence[str]) -> str:
    for key in field:
        config = config.get(key) if isinstance(config, Mapping) else None
    text = repr(config)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
