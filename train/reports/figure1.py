"""Figure 1 of the paper: every method's decision boundary as a picture, and two numbers that the paper does not give.

<run>/figure1.json   per network and method the numbers of every seed, and how they were made
<run>/figure1.svg    the boundary of the mean over seeds, with the first seed's points
<run>/report.html    both on one page that needs no network
"""

import hashlib
import html
import io
import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray
from scipy.spatial import KDTree

from train.experiments.two_moons import EDGE, GRID, Found, Method, TwoMoons, points, train
from train.files import arrays, whole_files
from train.reports import figures, page, summary
from train.reports.summary import Sample
from train.run.folder import as_json, claim, provenance, versions, write_json

_GROUNDS = ("#f3d9c6", "#cfe0ee")  # where the output is negative, and positive
LEGEND = (
    "Distance: of the points to their own run's boundary, the mean and the smallest. Sensitivity ratio: mean |df/dx1| "
    "over mean |df/dx2| at the points, x1 being the axis that separates. Mean ± standard deviation over seeds. "
    "\N{EN DASH}: a seed has no boundary within the picture."
)
_HEADINGS = ("mean distance", "smallest", "sensitivity ratio")
_POINTS = ("#c55300", "#0071b1")  # not quite the arms', which a dark page makes lighter: the grounds stay light


def run(config: TwoMoons, command: str) -> FilePath:
    """Trains every network under every method and returns the run folder, complete; finished methods are kept.

    Raises:
      ValueError: before any work, for a config without a seed, network or method, or another one's folder.
    """
    if not (config.seeds and config.networks and config.methods):
        raise ValueError("Figure 1 needs a seed, a network and a method.")
    started = time.perf_counter()
    folder = FilePath(config.runs_directory) / config.name
    rows, panels = [], {}
    with claim(folder, config):
        for network, widths in config.networks.items():
            for name, method in config.methods.items():
                found = _train(config, method.widths or widths, method, folder / "trained")
                rows.append({"network": network, "method": name, **_numbers(config, method, found)})
                panels[network, name] = found.values.mean(axis=0)
                print(line(rows[-1]), flush=True)
    about = provenance(config, command, time.perf_counter() - started)
    write_json(folder / "figure1.json", {"rows": rows, **about})
    whole_files.write(folder / "figure1.svg", draw(picture(config, panels)))
    whole_files.write(folder / "report.html", _page(config, rows, panels, about))
    return folder


def _numbers(config: TwoMoons, method: Method, found: Found) -> dict[str, list[float]]:
    """Of every seed."""
    seeds = zip(found.values, config.seeds, strict=True)
    away = [distances(values, config, seed, method.rotation) for values, seed in seeds]
    numbers = {
        "distance": [own.mean() for own in away],
        "margin": [own.min() for own in away],
        "sensitivity": sensitivity(found.slopes),
        "accuracy": found.accuracy,
    }
    return {name: list(map(float, values)) for name, values in numbers.items()}


def _train(config: TwoMoons, widths: tuple[int, ...], method: Method, folder: FilePath) -> Found:
    """What `train` gives, kept in a file that is named by the hash of all that it depends on."""
    names = ("seeds", "steps", "samples", "noise", "margin")
    decides = {"method": method, "widths": widths, **{name: getattr(config, name) for name in names}}
    text = json.dumps(as_json(decides) | versions(), sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    if path.exists():
        try:
            return Found(**arrays.read(path))
        except (ValueError, TypeError) as error:  # the file's own checksums, or its names
            print(f"note: a network of {folder} is trained anew: {error}", file=sys.stderr)
    began = time.perf_counter()
    found = train(config, widths, method)
    print(f"{time.perf_counter() - began:.0f} s: ", end="")
    folder.mkdir(exist_ok=True)
    with whole_files.replace(path) as partial, partial.open("wb") as file:
        np.savez(file, **found._asdict())
    return found


def boundary(values: NDArray) -> NDArray:
    """Where a function on the grid is 0 along the grid's lines, linearly between neighbours: points (m, 2)."""
    axis = np.linspace(-EDGE, EDGE, GRID)
    found = []
    for along, field in ((0, values), (1, values.T)):
        a, b = field[:-1], field[1:]
        i, j = np.nonzero((a < 0) != (b < 0))
        crossing = axis[i] + (axis[1] - axis[0]) * a[i, j] / (a[i, j] - b[i, j])
        pair = (crossing, axis[j])
        found.append(np.stack(pair if along == 0 else pair[::-1], axis=1))
    return np.concatenate(found)


def distances(values: NDArray, config: TwoMoons, seed: int, rotation: float = 0.0) -> NDArray:
    """The distance of each of one seed's points to its boundary (n,); NaN where there is none within the grid."""
    zeros = boundary(values)
    x, _ = points(config, seed, rotation)
    return KDTree(zeros).query(x)[0] if len(zeros) else np.full(len(x), np.nan)


def sensitivity(slopes: NDArray) -> NDArray:
    """By seed, mean |df/dx1| over mean |df/dx2| at the points: how much more the separating axis counts."""
    size = np.abs(slopes).mean(axis=1)
    return size[:, 0] / size[:, 1]


def line(row: Mapping[str, Any]) -> str:
    """One network under one method, as text."""
    return "  ".join([f"{row['network']:12} {row['method']:22}", *_cells(row)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    digits = {"distance": 3, "margin": 3, "sensitivity": 1}
    return [Sample(dict(enumerate(np.asarray(row[key]).tolist()))).text(count) for key, count in digits.items()]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The numbers as a table: methods down, networks across; mean ± standard deviation (n - 1) over seeds."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["network"], row["method"]): _cells(row) for row in rows}
    headings = [f"{what}, {net}" for net in networks for what in _HEADINGS]
    body = [[name, *(cell for net in networks for cell in cells[net, name])] for name in names]
    return "\n".join(summary.markdown([["method", *headings], *body]))


@figures.styled
def picture(config: TwoMoons, panels: Mapping[tuple[str, str], NDArray]) -> Figure:
    """Two rows of panels per network: grounds by the sign of the mean output, and the first seed's points."""
    names, networks = list(config.methods), list(config.networks)
    columns = math.ceil(len(names) / 2)
    rows = 2 * len(networks)
    figure = Figure(figsize=(1.75 * columns, 1.95 * rows))
    for k, (network, name) in enumerate((network, name) for network in networks for name in names):
        i = k % len(names)
        row, column = 2 * (k // len(names)) + i // columns, i % columns
        axes = figure.add_axes(((column + 0.04) / columns, 1 - (row + 0.96) / rows, 0.92 / columns, 0.8 / rows))
        _panel(axes, panels[network, name], *points(config, config.seeds[0], config.methods[name].rotation))
        axes.set_title(f"{network}\n{name}" if i % columns == 0 else name, fontsize=8, pad=4)
    return figure


@figures.styled
def _alone(values: NDArray, x: NDArray, sign: NDArray) -> Figure:
    figure = Figure(figsize=(1.75, 1.75))
    _panel(figure.add_axes((0.01, 0.01, 0.98, 0.98)), values, x, sign)
    return figure


def _panel(axes: Axes, values: NDArray, x: NDArray, sign: NDArray) -> None:
    axis = np.linspace(-EDGE, EDGE, GRID)
    axes.set_facecolor(_GROUNDS[0])
    if values.min() < 0 < values.max():
        axes.contourf(axis, axis, values.T, [0, 1.01 * values.max()], colors=_GROUNDS[1:])
        axes.contour(axis, axis, values.T, [0], colors="black", linewidths=1.0)
    for colour, own in zip(_POINTS, (x[sign < 0], x[sign > 0]), strict=True):
        # Lines of no length with round ends: a fifth of the bytes of markers.
        codes = np.tile([Path.MOVETO, Path.LINETO], len(own))
        dots = Path(np.stack([own, own + 1e-5], axis=1).reshape(-1, 2), codes)
        dots.should_simplify = False
        axes.add_patch(PathPatch(dots, edgecolor=colour, fill=False, linewidth=2.2, capstyle="round", zorder=3))
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")


@figures.styled
def draw(figure: Figure) -> str:
    """The figure as an SVG of its own with coordinates to a tenth of a point: small enough to be committed."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return _shorten(re.sub(r"[ \t]+\n", "\n", buffer.getvalue()))


def _shorten(svg: str) -> str:
    return re.sub(r' d="[^"]*"', lambda found: _short(found[0]), svg)


def _short(path: str) -> str:
    rounded = re.sub(r"(\d+\.\d)\d+", r"\1", path)
    dots = re.sub(r"M ([\d.-]+ [\d.-]+) *\nL \1 *\n", r"M\1h0\n", rounded)
    return dots.replace("\nL ", " ")


def _page(
    config: TwoMoons,
    rows: Sequence[Mapping[str, Any]],
    panels: Mapping[tuple[str, str], NDArray],
    about: Mapping[str, Any],
) -> str:
    facts = {key: about[key] for key in ("hardware", "commit")} | {"seconds": round(about["wall_seconds"])}
    explained = f"Grounds: the sign of the output, averaged over {len(config.seeds)} seeds. Points: the first seed's."
    sections = []
    for k, network in enumerate(config.networks):
        drawn = []
        for i, (name, method) in enumerate(config.methods.items()):
            panel = _alone(panels[network, name], *points(config, config.seeds[0], method.rotation))
            drawn.append(figures.picture(f"moons{k}-{i}-", [panel], f"Decision boundary: {network}, {name}", name))
        own = [row for row in rows if row["network"] == network]
        table = page.table(("method", *_HEADINGS), [[row["method"], *_cells(row)] for row in own])
        panels_of = f'<div class="moons">{_shorten("".join(drawn))}</div>'
        sections.append(f"<section><h2>{html.escape(network)}</h2>{panels_of}{table}</section>")
    main = f"""<header><div><h1>Two moons that one axis alone separates</h1>
<p class="soft">{html.escape(f"{explained} {LEGEND}")}</p></div></header>
{"".join(sections)}
{page.footer(about["command"], facts, about["config"])}"""
    return page.page("Figure 1: two moons", main)
