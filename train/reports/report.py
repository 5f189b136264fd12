"""A finished run folder as a table, and as one HTML page that needs no network.

<run>/experiment.json                 title, arms, seeds, class names, and how the run was made
<run>/<arm>/seed<k>/metrics.jsonl     a line each: step, loss and split, "train" or "validation"
<run>/<arm>/seed<k>/result.json       the numbers of the table, accuracies as fractions
<run>/<arm>/seed<k>/features.npz      test features, singular values, and the probe's sweep
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.reports import figures, layers_section, page

_FILES = ("metrics.jsonl", "result.json", "features.npz")


@dataclass(frozen=True)
class Run:
    """One arm trained with one seed. Accuracies are fractions; `curves` maps a split to its steps and losses."""

    superclass_accuracy: float
    probe_accuracy: float
    effective_rank: float
    probe_l2: float
    probe_converged: bool
    test_features: NDArray  # n d
    test_labels: NDArray  # n, of the classes that the probe learns
    singular_values: NDArray  # of the centred training features, largest first
    l2: NDArray  # s, the probe's strengths
    validation_accuracy: NDArray  # s
    curves: Mapping[str, NDArray]  # 2 t, of a split


@dataclass(frozen=True)
class Experiment:
    """What a run folder holds; `runs` maps an arm to its runs, in the order of `seeds`."""

    name: str
    title: str
    arms: Sequence[str]
    seeds: Sequence[int]
    superclass_label: str
    probe_label: str
    class_names: Sequence[str]
    command: str
    hardware: str
    commit: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    wall_seconds: float
    runs: Mapping[str, Sequence[Run]]
    paper: str = ""


def load(run_dir: Path) -> Experiment:
    """The finished run in `run_dir`.

    Raises:
        ValueError: a file is missing, or lacks a key, a number or a split; names it.
    """
    path = run_dir / "experiment.json"
    _check(path.is_file(), f"{path} is missing: not a run folder, or its run has not started")
    about = _json(path, {field.name for field in fields(Experiment)} - {"runs", "paper"})
    arms, seeds, classes = about["arms"], about["seeds"], len(about["class_names"])
    distinct = len(set(arms)) == len(arms) > 1 and len(set(seeds)) == len(seeds) > 0
    _check(distinct, f"{path}: a report needs two arms and a seed, all distinct, not {arms} and {seeds}")
    folders = {arm: [run_dir / arm / f"seed{seed}" for seed in seeds] for arm in arms}
    needed = [folder / name for own in folders.values() for folder in own for name in _FILES]
    gone = [str(path.relative_to(run_dir)) for path in needed if not path.is_file()]
    _check(not gone, f"{run_dir} is not finished: {len(gone)} of {len(needed)} files are missing, first {gone[:1]}")
    runs = {arm: [_run(folder, classes) for folder in own] for arm, own in folders.items()}
    known = {field.name: about[field.name] for field in fields(Experiment) if field.name in about.keys() - {"runs"}}
    return Experiment(**known, runs=runs)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _json(path: Path, wanted: set[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check(wanted <= found.keys(), f"{path} lacks {', '.join(sorted(wanted - found.keys()))}")
    return found


def _run(folder: Path, classes: int) -> Run:
    """The run in `folder`, whose labels are below `classes`."""
    log, numbers_file, arrays_file = (folder / name for name in _FILES)
    arrays = {field.name for field in fields(Run) if field.type == NDArray}
    result = _json(numbers_file, {field.name for field in fields(Run)} - arrays - {"curves"})
    numbers = {field.name: result[field.name] for field in fields(Run) if field.name in result}
    for name, value in numbers.items():
        _check(isinstance(value, int | float) and math.isfinite(value), f"{numbers_file}: {name} is {value}")
    with np.load(arrays_file, allow_pickle=False) as archive:
        _check(arrays <= set(archive), f"{arrays_file} lacks {', '.join(sorted(arrays - set(archive)))}")
        run = Run(**numbers, **{name: archive[name] for name in arrays}, curves=_curves(log))
    _check(min(run.l2.min(), run.probe_l2) > 0, f"{folder}: l2 and probe_l2 must be positive")
    _check(run.test_labels.max() < classes, f"{arrays_file}: test_labels beyond the {classes} class_names")
    return run


def _curves(path: Path) -> dict[str, NDArray]:
    """Steps and losses of each split."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = {s: [(r["step"], r["loss"]) for r in records if r["split"] == s] for s in ("train", "validation")}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a record of step, split and loss in every line ({error!r})") from None
    for split, own in points.items():
        _check(bool(own), f"{path} has no line of the {split} split")
    return {split: np.array(own, float).T for split, own in points.items()}


@dataclass(frozen=True)
class Row:
    """A metric over `n` seeds: mean and standard deviation (n - 1) per arm, the rest per arm after the first.

    Differences are from the first arm; those of percentages are points. `standard_error` is sqrt(s1^2/n + s2^2/n), as
    if arms were independent. They share each seed's split, so `paired_error`, from the seeds' own differences, is the
    right one at any n; the other is the cautious choice where a split moves both arms alike. One seed: NaN.
    """

    metric: str
    arms: Sequence[str]
    n: int
    mean: Sequence[float]
    std: Sequence[float]
    difference: Sequence[float]
    standard_error: Sequence[float]
    paired_error: Sequence[float]


def summary(experiment: Experiment) -> tuple[Row, ...]:
    """Superclass accuracy (%), probe accuracy (%) and effective rank: each arm, and its difference from the first."""
    return (
        _row(experiment, "superclass accuracy (%)", lambda run: 100 * run.superclass_accuracy),
        _row(experiment, "probe accuracy (%)", lambda run: 100 * run.probe_accuracy),
        _row(experiment, "effective rank", lambda run: run.effective_rank),
    )


def _row(experiment: Experiment, metric: str, of: Callable[[Run], float]) -> Row:
    values = np.array(list(_per_arm(experiment, of).values()))  # arms n
    apart, n = values[1:] - values[0], values.shape[1]
    std, spread = (x.std(axis=1, ddof=1) if n > 1 else np.full(len(x), np.nan) for x in (values, apart))
    columns = (values.mean(1), std, apart.mean(1), np.sqrt((std[1:] ** 2 + std[0] ** 2) / n), spread / math.sqrt(n))
    return Row(metric, experiment.arms, n, *(column.tolist() for column in columns))


def _per_arm(experiment: Experiment, of: Callable[[Run], Any]) -> dict[str, list[Any]]:
    return {arm: [of(run) for run in runs] for arm, runs in experiment.runs.items()}


def table_text(rows: Sequence[Row]) -> str:
    """The summary as a markdown table, aligned to read well in a terminal, and a line on what its numbers are."""
    cells = _cells(rows)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in (cells[0], rule, *cells[1:]))
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", _legend(rows)])


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    arms = rows[0].arms
    differences = ["difference"] if len(arms) == 2 else [f"{arm} against {arms[0]}" for arm in arms[1:]]
    cells = [["metric", *arms, *differences]]
    for row in rows:
        own = (f"{_number(m)} ± {_number(s)}" for m, s in zip(row.mean, row.std, strict=True))
        apart = (f"{_number(d, '+')} ± {_number(e)}" for d, e in zip(row.difference, row.standard_error, strict=True))
        cells.append([row.metric, *own, *apart])
    return cells


def _number(value: float, sign: str = "") -> str:
    return "\N{EN DASH}" if math.isnan(value) else f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def _legend(rows: Sequence[Row]) -> str:
    paired = ", ".join(map(_number, rows[1].paired_error))
    arms = f"Arms: mean ± standard deviation, n = {rows[1].n}."
    return f"{arms} Difference: mean ± unpaired standard error (the probe's, paired by seed: {paired})."


def headline(rows: Sequence[Row]) -> str:
    """The probe's verdict on each arm after the first, a sentence each, no stronger than the standard error allows."""
    probe = rows[1]
    results = zip(probe.arms[1:], probe.difference, probe.standard_error, strict=True)
    return " ".join(_verdict(arm, probe.arms[0], difference, error) for arm, difference, error in results)


def _verdict(arm: str, first: str, difference: float, error: float) -> str:
    if abs(difference) <= error:
        return f"{arm} and {first} do not differ in probe accuracy by more than the standard error."
    doubt = "" if abs(difference) > 2 * error else ", by less than two standard errors"
    if math.isnan(error):
        doubt = " in one seed, which has no error to judge it by"
    size = f"{_number(abs(difference))} points {'better' if difference > 0 else 'worse'}"
    return f"{arm}'s features probe {size} than {first}'s{doubt}."


def write(run_dir: Path) -> Path:
    """The path of `report.html`, written into the run folder; a run that is not finished raises as in `load`."""
    experiment = load(run_dir)
    path = run_dir / "report.html"
    layers = layers_section.section(run_dir, experiment.arms, experiment.seeds[0])
    path.write_text(_page(experiment, summary(experiment), layers), encoding="utf-8")
    return path


def _page(e: Experiment, rows: Sequence[Row], layers: str) -> str:
    strip, *pictures = _pictures(e, rows)
    colours = ["soft", *(figures.arm_role(i) for i in range(len(e.arms)))]
    header, *body = _cells(rows)
    columns = zip(colours + colours[2:], header, strict=True)
    head = "".join(f'<th style="color:var(--{colour})">{escape(x)}</th>' for colour, x in columns)
    lines = "".join(f"<tr><th>{escape(x)}</th>{''.join(f'<td>{escape(y)}</td>' for y in ys)}</tr>" for x, *ys in body)
    runs = [(f"{arm} seed {s}", run) for arm in e.arms for s, run in zip(e.seeds, e.runs[arm], strict=True)]
    stopped = ", ".join(name for name, run in runs if not run.probe_converged)
    notes = [f"The probe stopped before it converged: {stopped}." if stopped else "", e.paper]
    facts = {"hardware": e.hardware, "wall time": f"{e.wall_seconds:.0f} s", "commit": e.commit, **e.versions}
    main = f"""<header><div><p class="soft">{escape(e.title)}</p><h1>{escape(headline(rows))}</h1>
<p>Trained to tell the superclass ({escape(e.superclass_label)}); then frozen, and a linear probe learned the subclass
({escape(e.probe_label)}) from the features.</p>{"".join(f"<p>{escape(note)}</p>" for note in notes if note)}</div>
{strip}</header>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>
<p class="soft">{escape(_legend(rows))}</p>
{"".join(pictures)}{layers}
{page.footer(e.command, facts, e.config)}"""
    return page.page(e.title, main)


def _pictures(e: Experiment, rows: Sequence[Row]) -> list[str]:
    """The page's figures: every seed's probe accuracy, then features, spectrum, strength and losses."""
    probe, ranks = _per_arm(e, lambda run: run.probe_accuracy), dict(zip(e.arms, rows[2].mean, strict=True))
    chosen = _per_arm(e, lambda run: run.probe_l2)
    first = [(e.runs[arm][0].test_features, e.runs[arm][0].test_labels, e.class_names, arm) for arm in e.arms]
    panels = {
        "strip": [figures.strip(probe)],
        "plane": [figures.scatter(*own, i) for i, own in enumerate(first)],
        "spectrum": [figures.spectra(_per_arm(e, lambda run: run.singular_values), ranks)],
        "strength": [figures.strengths(_per_arm(e, lambda run: (run.l2, run.validation_accuracy)), chosen)],
        "loss": [figures.losses(_per_arm(e, lambda run, s=s: run.curves[s]), s) for s in ("train", "validation")],
    }
    alts = {
        "strip": f"Probe accuracy of every seed: {_said(probe, '.2%')}.",
        "plane": f"Test features projected to two dimensions, coloured by {e.probe_label}, one panel per arm.",
        "spectrum": f"Singular values. Effective rank: {_said({arm: [x] for arm, x in ranks.items()}, '.1f')}.",
        "strength": f"Validation accuracy of the probe against its strength. Chosen: {_said(chosen, '.2g')}.",
        "loss": "Loss against training step, one panel per split.",
    }
    captions = {
        "strip": "Every point is a seed; a thin line joins a seed's runs, which share a split. Bars are means.",
        "plane": f"Test features of seed {e.seeds[0]}, coloured by {e.probe_label}: each arm's own first two principal "
        f"components, in one unit on both axes. Only two of {first[0][0].shape[1]} directions show: classes that "
        "overlap here may lie apart for the probe, which sees them all.",
        "spectrum": "Spectrum of the training features. Line: mean over seeds; band: lowest to highest. Dot: effective "
        "rank, the number of directions of a flat spectrum with the same entropy.",
        "strength": f"Line and band: as in the spectrum. Dots: each seed's choice. Cut {figures.SHOWN} points below "
        "the best.",
        "loss": "Thin lines: seeds; thick: their mean. Each panel has its own scale.",
    }
    return [figures.picture(name, panels[name], alts[name], captions[name]) for name in panels]


def _said(values: Mapping[str, Sequence[float]], form: str) -> str:
    return "; ".join(f"{arm} " + ", ".join(format(x, form) for x in own) for arm, own in values.items())
