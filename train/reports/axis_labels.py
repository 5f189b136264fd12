"""What is written beside the data of a picture: numbers of logarithmic axes, names of arms, ink on a colour."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic: labels at powers of ten, at 1, 2 and 5 where those are few, or at any round numbers.

    Plain text throughout, since figures do not read mathematics; call it when all is drawn.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = np.log10(high / low)
    few = decades < 2
    axis.set_major_locator(MaxNLocator(4) if decades < 0.5 else LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if few else _power(value)))
    axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    return "10" + str(round(np.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def names_above(axes: Axes, title: str, names: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """The title, and under it a line for each name in its style; the axes make room for them."""
    left, bottom, width, height = axes.get_position().bounds
    figure = axes.get_figure(root=True)
    assert figure is not None
    points = 72 * figure.get_figheight()
    axes.set_position((left, bottom, width, height - (15 * len(names) - 5) / points))
    for i, (name, style) in enumerate(names):
        up = (0, 6 + 15 * (len(names) - 1 - i))
        axes.annotate(name, (0, 1), up, xycoords="axes fraction", textcoords="offset points", **style)
    axes.set_title(title, pad=10 + 15 * len(names))


def thin_out(names: Sequence[str], most: int = 8) -> list[int]:
    """The places of at most about `most` names that are written; the last always, and none close before it."""
    step = math.ceil(len(names) / most)
    last = len(names) - 1
    return [i for i in range(0, last, step) if last - i >= min(step, 2)] + [last]


def shorten(name: str, most: int) -> str:
    """The name, or as much of its start as leaves it at `most` characters."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def ink_on(colour: Any) -> str:
    """Black or white: what has more contrast on `colour`, by WCAG's relative luminance."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"
