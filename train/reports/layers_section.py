"""The section of a run's page that shows every layer over time, where its runs have looked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from train.reports import figures
from train.reports.axis_labels import log_axis, names_above

SHOWN = {
    "effective_rank": "effective rank",
    "under_unit_std": "share of features under unit deviation",
    "off_diagonal_rms": "covariance off the diagonal, RMS",
    "gradient_ratio": "regularizer's gradient over the task's",
}
Looks = Mapping[str, tuple[NDArray, NDArray]]  # "layer/number" -> steps and values

_CAPTION = (
    "Every layer while training, first seed: blocks from faint to strong, the features dashed. Measured on a training "
    "batch before its step. A ratio of 0 means no regularizer there."
)


def section(run_dir: Path, arms: Sequence[str], seed: int) -> str:
    """The figure as HTML; nothing when not every arm has looked."""
    looks = {arm: read(run_dir / arm / f"seed{seed}" / "metrics.jsonl") for arm in arms}
    if not all(looks.values()):
        return ""
    panels = [over_time(looks, number, title) for number, title in SHOWN.items() if _positive(looks, number)]
    ends = ", ".join(f"{arm} {own['features/effective_rank'][1][-1]:.1f}" for arm, own in looks.items())
    return figures.picture(
        "layers", panels, f"Every layer over time. Last effective rank of the features: {ends}.", _CAPTION
    )


def read(path: Path) -> Looks:
    """The numbers of every layer in a metrics file.

    Raises:
      ValueError: for a line that is no record.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [record for record in records if record["split"] == "layers"]
        names = [name for name in lines[0] if "/" in name] if lines else []
        return {name: (np.array([r["step"] for r in lines]), np.array([r[name] for r in lines])) for name in names}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a record of step, split and numbers in every line ({error!r})") from None


def _positive(looks: Mapping[str, Looks], number: str) -> bool:
    return any((values > 0).any() for own in looks.values() for name, (_, values) in own.items() if _is(name, number))


def _is(name: str, number: str) -> bool:
    return name.split("/")[1] == number


@figures.styled
def over_time(looks: Mapping[str, Looks], number: str, title: str) -> Figure:
    """One number of every layer against the step; zeros, where nothing pulls, are left out."""
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_axes((0.12, 0.17, 0.85, 0.72))
    for i, own in enumerate(looks.values()):
        layers = {name.split("/")[0]: curve for name, curve in own.items() if _is(name, number)}
        for k, (layer, (steps, values)) in enumerate(layers.items()):
            if not (values > 0).any():
                continue
            dashed = layer == "features"
            depth = 0.25 + 0.75 * k / max(len(layers) - 1, 1)
            style = {"color": figures.colour(i), "alpha": depth, "linestyle": "--" if dashed else "-", "linewidth": 1.4}
            axes.plot(steps, values, **style)
    names_above(axes, title, [(arm, figures.bold(i)) for i, arm in enumerate(looks)])
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if number == "gradient_ratio":
        log_axis(axes, "y")
    return figure
