"""What speaks against a probe's accuracy: that it stopped early, or that its strengths ended too soon."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np


def name_end(chosen: float, strengths: Sequence[float] | np.ndarray) -> Literal["weakest", "strongest", ""]:
    """Say at which end of the strengths tried the chosen one lies; "" in between, or if only one was tried."""
    if len(strengths) < 2 or not np.isin(chosen, (np.min(strengths), np.max(strengths))):
        return ""
    return "weakest" if chosen == np.min(strengths) else "strongest"


def list_doubts(found: Mapping[str, Any]) -> list[str]:
    """What speaks against a probe's result, in words: that it stopped early, or that it wants another strength."""
    said = [] if found["converged"] else [f"the probe stopped at gradient {found['worst_gradient_norm']:.1e}"]
    if end := found.get("end_of_strengths"):
        beyond = "lower l2_low" if end == "weakest" else "raise l2_high"
        said.append(f"the {end} strength was best, {found['l2']:g}: {beyond}, since better ones may lie beyond")
    return said
