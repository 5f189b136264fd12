"""One comparison of two lists of arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Item:
    """One comparison. `relative` is what counts: norm of the difference over norm of PyTorch's, the worst tensor's."""

    name: str
    absolute: float  # largest difference of two elements
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the relative difference is within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


def compare(name: str, ours: Any, theirs: np.ndarray, tolerance: float) -> Item:
    """One array of each."""
    return worst_of(name, [np.asarray(ours)], [theirs], tolerance)


def worst_of(name: str, ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> Item:
    """Lists of arrays, pair by pair; another shape, or under a name with "float64" another type, does not pass."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(a.shape != b.shape or (a.dtype != b.dtype and "float64" in name) for a, b in pairs):
        return Item(name, np.inf, np.inf, tolerance)
    absolute = [np.abs(a - b).max() for a, b in pairs]
    norms = [(np.linalg.norm(a - b), np.linalg.norm(b)) for a, b in pairs]
    relative = [float(difference / norm) if norm or difference else 0.0 for difference, norm in norms]
    return Item(name, float(np.max(absolute)), float(np.max(np.array(relative))), tolerance)  # NaN if any is


def pair(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Both in one order; a name that only one side has is a KeyError or a length that does not fit."""
    return [ours[name] for name in theirs] + [ours[name] for name in ours.keys() - theirs.keys()], list(theirs.values())


def line(item: Item) -> str:
    """One row of the table."""
    numbers = f"{item.absolute:10.1e}{item.relative:10.1e}{item.tolerance:11.0e}"
    return f"{item.name:62}{numbers}  {'pass' if item.passed else 'FAIL'}"
