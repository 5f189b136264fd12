"""A finished experiment: what its files hold, as a table and in words.

<run>/experiment.json                 title, arms, seeds, targets with their classes, and how the run was made
<run>/<arm>/seed<k>/metrics.jsonl     a line each: step, loss and split, "train" or "validation"
<run>/<arm>/seed<k>/result.json       the numbers of the table, accuracies as fractions
<run>/<arm>/seed<k>/features.npz      of every target: points in a plane, singular values, the probe's sweep
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.files import arrays, json_files
from train.reports import results
from train.reports.results import PRETRAINING, Results
from train.reports.summary import Difference, Sample, difference, markdown, number
from train.run.folder import ARRAYS

_ABOUT = ("name", "title", "notes", "arms", "seeds", "label", "targets", "command", "hardware", "commit", "versions")
_ABOUT += ("config", "wall_seconds")
DRAWN = ("points", "shares", "labels", "singular_values")


@dataclass(frozen=True)
class Report:
    """A finished experiment; `arrays` and `curves` have an entry for each seed, in their order."""

    folder: Path
    about: Mapping[str, Any]  # what `experiment.json` says
    results: Results
    arrays: Mapping[str, Sequence[Mapping[str, NDArray]]]  # by arm: "<target>/<what>"
    curves: Mapping[str, Sequence[Mapping[str, NDArray]]]  # by arm: steps and losses, (2, t), of a split

    @property
    def arms(self) -> Sequence[str]:
        """The arms, the first of which the others are compared with."""
        return self.about["arms"]

    @property
    def target(self) -> str | None:
        """The target whose features are drawn: the first."""
        return next(iter(self.about["targets"]), None)

    def column_text(self, column: str) -> str:
        """What a column's accuracy is called."""
        trained = self.about["label"]
        if column == PRETRAINING:
            return f"{trained} accuracy" if self._probes_another_label() else "accuracy"
        several = len(self.about["targets"]) > 1
        return f"{column} probe accuracy" if several or self._probes_another_label() else "probe accuracy"

    def _probes_another_label(self) -> bool:
        return any(own["label"] != self.about["label"] for own in self.about["targets"].values())


def load(run_dir: Path) -> Report:
    """The finished run in `run_dir`.

    Raises:
        ValueError: a file is missing, or lacks a key, a number or a split; names it.
    """
    path = run_dir / "experiment.json"
    _check(path.is_file(), f"{path} is missing: not a run folder, or its run has not finished")
    about = json_files.read(path)
    _check(about.keys() >= {*_ABOUT}, f"{path} lacks {', '.join(sorted({*_ABOUT} - about.keys()))}")
    arms, seeds, targets = about["arms"], about["seeds"], about["targets"]
    distinct = len(set(arms)) == len(arms) > 0 and len(set(seeds)) == len(seeds) > 0
    _check(distinct, f"{path}: a report needs an arm and a seed, all distinct, not {arms} and {seeds}")
    folders = {arm: [run_dir / arm / f"seed{seed}" for seed in seeds] for arm in arms}
    names = ("metrics.jsonl", "result.json", *((ARRAYS,) if targets else ()))
    needed = [folder / name for own in folders.values() for folder in own for name in names]
    gone = [str(path.relative_to(run_dir)) for path in needed if not path.is_file()]
    _check(not gone, f"{run_dir} is not finished: {len(gone)} of {len(needed)} files are missing, first {gone[:1]}")
    return Report(
        folder=run_dir,
        about=about,
        results=results.read(run_dir, arms, targets),
        arrays={arm: [_arrays(folder / ARRAYS, targets) for folder in own] for arm, own in folders.items()},
        curves={arm: [_curves(folder / "metrics.jsonl") for folder in own] for arm, own in folders.items()},
    )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _arrays(path: Path, targets: Mapping[str, Any]) -> dict[str, NDArray]:
    if not targets:
        return {}
    found = arrays.read(path)
    needed = {f"{name}/{what}" for name in targets for what in DRAWN}
    _check(needed <= found.keys(), f"{path} lacks {', '.join(sorted(needed - found.keys()))}")
    for name, target in targets.items():
        classes = len(target["class_names"])
        most = found[f"{name}/labels"].max(initial=0)
        _check(most < classes, f"{path}: labels of {name} beyond its {classes} class_names")
    return found


def _curves(path: Path) -> dict[str, NDArray]:
    """Steps and losses of each split."""
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = {
            s: [(r["step"], r["loss"]) for r in records if r["split"] == s and "loss" in r]
            for s in ("train", "validation")
        }
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a record of step, split and loss in every line ({error!r})") from None
    # An arm of given weights, which is not trained, has no lines at all.
    _check(bool(points["train"]) or not records, f"{path} has no line of the train split")
    return {split: np.array(own, float).T for split, own in points.items() if own}


def rows(report: Report) -> list[list[str]]:
    """The table as text, its header first: a line a metric, a column an arm, then each arm less the first."""
    first, *others = report.arms
    differences = ["difference"] if len(others) == 1 else [f"{arm} less {first}" for arm in others]
    lines = [["", *report.arms, *differences]]
    for name, samples in _metrics(report).items():
        own = [samples[arm] for arm in report.arms]
        lines.append([name, *map(str, own), *(_text(difference(each, own[0])) for each in own[1:])])
    return lines


def _metrics(report: Report) -> dict[str, dict[str, Sample]]:
    """Every metric's samples by arm."""
    found = report.results
    metrics = {
        f"{report.column_text(column)} (%)": {arm: found.accuracy[arm][column] for arm in report.arms}
        for column in found.columns
    }
    if report.target is not None:
        metrics["effective rank"] = {arm: found.effective_rank[arm][report.target] for arm in report.arms}
    return metrics


def _text(apart: Difference | None) -> str:
    return "" if apart is None else str(apart)


def text(report: Report) -> str:
    """The table in Markdown, and a line on what its numbers are."""
    return "\n".join([*markdown(rows(report)), "", legend(report)])


def legend(report: Report) -> str:
    """What the table's numbers are."""
    n = len(report.about["seeds"])
    said = f"Arms: mean ± standard deviation, n = {n}."
    paired = [apart.paired_error for apart in _verdicts(report).values() if not math.isnan(apart.paired_error)]
    if paired:
        column = report.column_text(report.results.columns[min(1, len(report.results.columns) - 1)])
        said += (
            f" Difference: mean ± unpaired standard error (of the {column}, paired by seed: "
            f"{', '.join(map(number, paired))})."
        )
    return said


def _verdicts(report: Report) -> dict[str, Difference]:
    """Each arm's difference from the first where it matters most: in the first target, or else in the trained label."""
    first, *others = report.arms
    column = report.target or PRETRAINING
    samples = {arm: own[column] for arm, own in report.results.accuracy.items()}
    found = {arm: difference(samples[arm], samples[first]) for arm in others}
    return {arm: apart for arm, apart in found.items() if apart is not None}


def headline(report: Report) -> str:
    """The verdict on each arm after the first, a sentence each, no stronger than the standard error allows."""
    first = report.arms[0]
    said = [_verdict(report, arm, first, apart) for arm, apart in _verdicts(report).items()]
    return " ".join(said) or str(report.about["title"])


def _verdict(report: Report, arm: str, first: str, apart: Difference) -> str:
    gain, error = apart.mean, apart.standard_error
    what = "probe accuracy" if report.target is not None else "accuracy"
    if abs(gain) <= error:
        return f"{arm} and {first} do not differ in {what} by more than the standard error."
    doubt = "" if abs(gain) > 2 * error else ", by less than two standard errors"
    if math.isnan(error):
        doubt = " in one seed, which has no error to judge it by"
    size = f"{number(abs(gain))} points {'better' if gain > 0 else 'worse'}"
    if report.target is not None:
        return f"{arm}'s features probe {size} than {first}'s{doubt}."
    return f"{arm} is {size} than {first}{doubt}."
