"""What the run folder of an experiment holds so far, as samples over seeds.

<run>/experiment.json             title, arms, seeds, targets and how the run was made; missing while it goes on
<run>/<arm>/seed<k>/result.json   the accuracies, fractions
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.files import json_files
from train.reports.summary import Sample

PRETRAINING = "pretraining"  # the column of the label that the networks are trained on


@dataclass(frozen=True)
class Results:
    """Of every arm and column, the columns being pretraining and the targets; without what has not finished."""

    columns: Sequence[str]
    accuracy: Mapping[str, Mapping[str, Sample]]  # arm -> column -> % by seed, on test images
    effective_rank: Mapping[str, Mapping[str, Sample]]  # arm -> target -> of the training features
    l2: Mapping[str, Mapping[str, Mapping[int, float]]]  # arm -> target -> the chosen strength by seed, if there is one
    protocols: Sequence[str]
    unconverged: Sequence[str]  # probes that stopped early
    made: Mapping[str, Any]  # what `experiment.json` says; empty while the run goes on


def read(folder: Path, arms: Iterable[str], targets: Iterable[str]) -> Results:
    """The results that lie in `folder`; a folder that is not there has none.

    Raises:
      ValueError: for a result that cannot be read, or is of other targets, naming the file.
    """
    arms, targets = list(arms), list(targets)
    columns, protocols, unconverged = [PRETRAINING, *targets], dict[str, None](), list[str]()
    accuracy: dict[str, dict[str, dict[int, float]]] = {arm: {name: {} for name in columns} for arm in arms}
    rank = {arm: {name: dict[int, float]() for name in targets} for arm in arms}
    l2 = {arm: {name: dict[int, float]() for name in targets} for arm in arms}
    for arm in arms:
        for seed, path in _in_order(folder / arm):
            found = _read(path, targets)
            accuracy[arm][PRETRAINING][seed] = 100 * found["accuracy"]
            for name, own in found["targets"].items():
                if name not in targets:
                    continue
                accuracy[arm][name][seed] = 100 * own["accuracy"]
                rank[arm][name][seed] = own["effective_rank"]
                l2[arm][name] |= {seed: own["l2"]} if "l2" in own else {}
                protocols[f"{name}: {own['protocol']}"] = None
                if not own["converged"]:
                    unconverged.append(f"{arm}, seed {seed}, {name}")
    made = json_files.read(path) if (path := folder / "experiment.json").exists() else {}
    return Results(columns, _samples(accuracy), _samples(rank), l2, list(protocols), unconverged, made)


def _samples(values: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, dict[str, Sample]]:
    return {arm: {name: Sample(own) for name, own in of_arm.items()} for arm, of_arm in values.items()}


def _in_order(folder: Path) -> list[tuple[int, Path]]:
    paths = folder.glob("seed*/result.json")
    return sorted((int(path.parent.name.removeprefix("seed")), path) for path in paths)


def _read(path: Path, targets: Collection[str]) -> dict[str, Any]:
    """The result; of some of the targets alone, while the others are still to be probed."""
    found = json_files.read(path)
    try:
        numbers = [found["accuracy"]]
        for name in found["targets"] if found["targets"].keys() <= set(targets) else targets:
            own = found["targets"][name]
            numbers += [own["accuracy"], own["effective_rank"], own.get("l2", 1.0)]
            _ = own["protocol"], own["converged"]
        if not all(isinstance(value, int | float) and value == value and value >= 0 for value in numbers):
            raise ValueError(f"numbers are {numbers}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no result of this config ({type(error).__name__}: {error}). Delete it and run the config again."
        ) from None
    return found
