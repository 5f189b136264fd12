"""The report's pictures: arrays in, `matplotlib` figures out, and those as SVG in the page's own colours.

Every function takes one value per arm, in the experiment's order, and inside it one per seed. Figures are drawn in the
light theme; `picture` swaps each colour for the CSS variable of its role, so that `CSS` decides how they look.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from train.reports.axis_labels import log_axis, names_above

Curves = Mapping[str, Sequence[NDArray | tuple[NDArray, NDArray]]]  # arm -> x and y of each seed

SHOWN = 30  # points below the best at which the picture of the probe's strengths is cut

# (light, dark) by role. Arms: Okabe and Ito's colour-blind safe set, lightened on dark. Classes: Tableau's ten, which
# keep their contrast on both grounds.
_ARMS = (("#c65400", "#ff9147"), ("#0072b2", "#5bb8f0"), ("#009e73", "#35c99f"), ("#a9568c", "#d98fbf"))
_CLASSES = (
    "#4e79a7",
    "#e8820e",
    "#e15759",
    "#4fa39f",
    "#59a14f",
    "#c9a227",
    "#b07aa1",
    "#e07b91",
    "#a65a3a",
    "#8c8782",
)
_ROLES = {"ink": ("#1c1b1a", "#eceae6"), "soft": ("#6f6a64", "#a29d96"), "rule": ("#dedad3", "#3a3835")} | {
    f"arm{i}": pair for i, pair in enumerate(_ARMS)
}
_INK, _SOFT, _RULE = (_ROLES[role][0] for role in ("ink", "soft", "rule"))


def _variables(theme: int) -> str:
    return "".join(f"--{role}:{pair[theme]};" for role, pair in _ROLES.items())


CSS = f"""
:root{{color-scheme:light dark;--paper:#fdfcfa;{_variables(0)}}}
@media(prefers-color-scheme:dark){{:root{{--paper:#191817;{_variables(1)}}}}}
svg text{{font-family:inherit!important}}
[id*=halo] text{{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}}
"""

_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.titlecolor"), _INK),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _SOFT),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 9),
    "font.size": 10,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.parse_math": False,  # names come from files, where "$" is a dollar
    "ytick.major.size": 0,
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, coloured by its theme
    "svg.hashsalt": "vcreg",  # the same ids on every run
}
_DOT: dict[str, Any] = {"markersize": 6, "markeredgecolor": _RULE, "markeredgewidth": 0.8}
styled = matplotlib.rc_context(_STYLE)  # around a function: the settings hold within each call


def arm_role(index: int) -> str:
    """The CSS variable that holds the colour of the arm with this index."""
    return f"arm{index % len(_ARMS)}"


def colour(index: int) -> str:
    """The light theme's colour of the arm with this index."""
    return _ROLES[arm_role(index)][0]


def picture(name: str, panels: Sequence[Figure], alt: str, caption: str) -> str:
    """An HTML figure of panels drawn as inline SVG: nothing outside it is needed. `alt`, `caption`: plain text."""
    drawn = "".join(_svg(panel, f"{name}{i}", alt) for i, panel in enumerate(panels))
    return f'<figure class="{name}"><div>{drawn}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


@styled
def _svg(figure: Figure, prefix: str, alt: str) -> str:
    """`figure` as an SVG element; `prefix` tells its ids from those of the page's other figures."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    start = re.compile(r'.*?<svg[^>]*?(viewBox="[^"]*")[^>]*>\s*<metadata>.*?</metadata>', re.DOTALL)
    most = f"max-width:{144 * figure.get_figwidth() / 16:g}rem"  # two pixels a point: text of a size on every page
    head = f'role="img" aria-label="{html.escape(alt)}" style="{most}"'
    text = start.sub(lambda found: f"<svg {found[1]} {head}>", buffer.getvalue(), 1)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", text.replace("xlink:href", "href"))
    for role, (light, _) in _ROLES.items():
        text = text.replace(light, f"var(--{role})")
    return text.strip()


def bold(index: int) -> dict[str, Any]:
    """How an arm's name is written; "halo" parts it from the lines it crosses (see `CSS`)."""
    return {"color": colour(index), "fontweight": "bold", "gid": f"halo{index}"}


def _axes(right: float) -> tuple[Figure, Axes]:
    """An empty figure with room on its `right` (a share of the width)."""
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_axes((0.1, 0.15, 0.9 - right, 0.74))
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _stack(curves: Sequence[NDArray | tuple[NDArray, NDArray]]) -> tuple[NDArray, NDArray]:
    """The x that all seeds have, and their y there: `(seeds, x)`."""
    shared = np.asarray(sorted(set.intersection(*(set(x.tolist()) for x, _ in curves))))
    return shared, np.stack([y[np.searchsorted(x, shared)] for x, y in curves])


@styled
def losses(curves: Curves, split: str) -> Figure:
    """Loss against step in one `split`: a thin line per seed, a thick one for their mean."""
    figure, axes = _axes(right=0.04)
    for i, seeds in enumerate(curves.values()):
        for x, y in seeds:
            axes.plot(x, y, color=colour(i), linewidth=0.6, alpha=0.45)
        x, y = _stack(seeds)
        axes.plot(x, y.mean(0), color=colour(i), linewidth=2.2)
    log_axis(axes, "y")
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    names_above(axes, f"{split} loss", [(arm, bold(i)) for i, arm in enumerate(curves)])
    return figure


@styled
def spectra(values: Mapping[str, Sequence[NDArray]], rank: Mapping[str, float]) -> Figure:
    """Singular values over the largest against their index: mean and range over seeds, mean effective rank marked."""
    figure, axes = _axes(right=0.04)
    lowest = 1.0
    for i, (arm, seeds) in enumerate(values.items()):
        share = np.stack([s / max(s[0], np.finfo(s.dtype).tiny) for s in seeds])
        mean, index = share.mean(0), np.arange(1, share.shape[1] + 1)
        axes.fill_between(index, share.min(0), share.max(0), color=colour(i), alpha=0.18, linewidth=0)
        axes.plot(index, mean, color=colour(i), linewidth=2.2)
        axes.plot(rank[arm], np.interp(rank[arm], index, mean), "o", color=colour(i), **_DOT)
        lowest = min([lowest, *mean[mean > 1e-4]])  # zeros, of dead units, have no place on a logarithmic axis
    names = [(f"{arm}: effective rank {rank[arm]:.1f}", bold(i)) for i, arm in enumerate(values)]
    names_above(axes, "singular value / largest", names)
    axes.set(xlabel="index", xlim=(0, None), ylim=(lowest / 2, 1.3))
    log_axis(axes, "y")
    return figure


@styled
def strengths(curves: Curves, chosen: Mapping[str, Sequence[float]]) -> Figure:
    """Probe validation accuracy (%) against regularization strength: mean, range, and each seed's `chosen` strength.

    Shows the part of the sweep within `SHOWN` points of the best: beyond it every probe falls to chance.
    """
    figure, axes = _axes(right=0.04)
    x = _stack([curve for seeds in curves.values() for curve in seeds])[0]
    accuracy = {arm: 100 * np.stack([y[np.searchsorted(at, x)] for at, y in seeds]) for arm, seeds in curves.items()}
    means = np.stack([y.mean(0) for y in accuracy.values()])
    floor = max(means.max() - SHOWN, means.min() - 2)
    for i, (arm, y) in enumerate(accuracy.items()):
        axes.fill_between(x, y.min(0), y.max(0), color=colour(i), alpha=0.15, linewidth=0)
        axes.plot(x, means[i], color=colour(i), linewidth=2.2)
        nearest = [int(np.abs(np.log(x / strength)).argmin()) for strength in chosen[arm]]
        axes.plot(x[nearest], y[range(len(y)), nearest], "o", color=colour(i), **_DOT)
    last = x[np.flatnonzero((means > floor).any(0))[-1]]
    axes.set_xlabel("regularization strength")
    axes.set(xlim=(x[0] / 2, last * 4), ylim=(floor, max(y.max() for y in accuracy.values()) + 3))
    log_axis(axes, "x")
    names_above(axes, "probe accuracy on validation, %", [(arm, bold(i)) for i, arm in enumerate(curves)])
    return figure


@styled
def scatter(
    points: NDArray, share: NDArray, labels: NDArray, class_names: Sequence[str], arm: str, index: int
) -> Figure:
    """Features in a plane `(n, 2)` coloured by class, both axes in one unit; one-letter classes as letters.

    `share` says how much of the variance each axis has.
    """
    figure = Figure(figsize=(4.6, 4.3))
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.87))
    axes.axis("off")
    for c, name in enumerate(class_names):
        own = points[labels == c]
        letter = len(name) == 1 and name.isalnum()
        marker, size = (_glyph(name), 24) if letter else ("o", 9)
        axes.scatter(*own.T, s=size, c=_CLASSES[c % len(_CLASSES)], marker=marker, linewidths=0)
        if len(own) and not letter and len(class_names) <= 20:  # more labels than that would cover the points
            x, y = np.median(own, axis=0)
            axes.text(x, y, name, color=_INK, ha="center", va="center", fontweight="bold", gid=f"halo{c}")
    half = 1.05 * max(np.abs(points).max(0) / (1, 0.81)) or 1.0  # the frame's height is 0.81 of its width
    axes.set(xlim=(-half, half), ylim=(-0.81 * half, 0.81 * half), aspect="equal")
    figure.text(0.02, 0.95, arm, **bold(index))
    spread = f"first direction {share[0]:.0%} of the variance, second {share[1]:.0%}"
    figure.text(0.02, 0.90, spread, color=_SOFT, fontsize=9)
    return figure


def _glyph(letter: str) -> Path:
    """The letter's outline, centred on the origin."""
    outline = TextPath((0, 0), letter, size=10, prop=FontProperties(weight="bold"))
    low, high = outline.get_extents().get_points()
    return Path(outline.vertices - (low + high) / 2, outline.codes)


@styled
def strip(accuracy: Mapping[str, Sequence[float]], what: str = "probe accuracy") -> Figure:
    """An accuracy (%) of every seed: a row per arm, thin lines joining a seed's runs, a bar at each mean."""
    rows = len(accuracy)
    figure = Figure(figsize=(4.6, 0.6 + 0.95 * rows))
    bottom = 0.5 / figure.get_figheight()
    axes = figure.add_axes((0.03, bottom, 0.94, 1 - bottom))
    values = 100 * np.asarray(list(accuracy.values()))
    gap = 0.025 * max(float(np.ptp(values)), 0.1)
    places = np.stack([row + 0.11 * _dodge(own, gap) for row, own in enumerate(values)])
    for x, y in zip(values.T, places.T, strict=True):
        axes.plot(x, y, color=_SOFT, linewidth=0.6, alpha=0.5)
    for row, (arm, own, y) in enumerate(zip(accuracy, values, places, strict=True)):
        axes.plot([own.mean()] * 2, [row - 0.22, row + 0.22], color=colour(row), linewidth=2.2)
        axes.plot(own, y, "o", color=colour(row), **_DOT)
        where = axes.get_yaxis_transform()
        axes.text(0, row - 0.36, f"{arm}, mean {own.mean():.1f}", transform=where, **bold(row))
    axes.set(ylim=(rows - 0.55, -0.6), yticks=[], xlabel=f"{what} on the test split, %")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _dodge(values: NDArray, gap: float) -> NDArray:
    """Row offsets (0, 1, -1, 2, ...) that part values closer than `gap`, so that equal ones all show."""
    offsets = np.zeros(len(values))
    for place, i in enumerate(order := np.argsort(values, kind="stable")):
        near = {float(offsets[j]) for j in order[:place] if values[i] - values[j] < gap}
        offsets[i] = next(o for k in range(len(values)) for o in (k, -k) if o not in near)
    return offsets
